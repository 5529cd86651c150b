/*
 * Attaches a channel to another domain of a Xen host: libxenvchan sets it up (grants, an event
 * channel, the rendezvous in xenstore), and from there on our ring works on its memory.
 *
 * The libraries are loaded on first use; pv_xen_load() says what is missing. Every function may block
 * while xenstore takes to answer; two threads must not call one for the same object.
 */
#ifndef PEDOS_XEN_H
#define PEDOS_XEN_H

#include "channel.h"

/*
 * The server's side: announces a channel for the one domain peer. 0 or -errno: -ENOSYS without the
 * libraries, -ENODEV without the kernel's drivers, -EACCES without the right to use them, -ENOSPC
 * when this domain's grants are used up, -EIO when xenstore refuses. It replaces what a dead server
 * left under this port. Orders: the library may make them larger (10 and 11 exist once each).
 */
int pv_xen_serve(unsigned domain, unsigned peer, unsigned port, unsigned left_order,
                 unsigned right_order, struct pv_channel **channel);

/* The client has connected: removes the rendezvous, so that the port is free for the next server.
 * */
void pv_xen_admit(struct pv_channel *channel);

/*
 * The client's side. 0 or -errno: as above, -ENOENT when no server announces that port for us,
 * -ECONNREFUSED when the announced server cannot be joined (it is gone, or taken), -EPROTO when the
 * shared page has impossible ring sizes.
 */
int pv_xen_join(unsigned domain, unsigned peer, unsigned port, struct pv_channel **channel);

/*
 * Watches the peer's domain from now on: within PV_XEN_LIVENESS_MS of its end (or of its end of the
 * event channel) fd is closed. The channel has to close fd from here on, also on error. Returns 0
 * or -errno.
 */
int pv_xen_guard(struct pv_channel *channel, int fd);

/*
 * A destroyed domain sends no event and runs no code; its memory stays mapped here. Its death must
 * be noticed within a second. A look is a hypercall for each channel in dom0, and in a guest one
 * question to xenstore for each peer, some 0.1 ms.
 */
#define PV_XEN_LIVENESS_MS 200

/*
 * A failed connection to xenstore is opened again, after a pause that doubles up to this. So a
 * death is still noticed soon after xenstore is back, and a struggling xenstored is not asked five
 * times a second.
 */
#define PV_XEN_REOPEN_MS_MAX 5000

/*
 * Whether deaths are noticed: pv_xen_guard_blind() is 0, or the errno with which xenstore has
 * failed since. pv_xen_guard_news() is an eventfd that counts the changes of it; -1 before the
 * first guard.
 */
int pv_xen_guard_blind(void);
int pv_xen_guard_news(void);

/* A connection to xenstore, by libxenstore. Its strings end at the first NUL. */
struct pv_store;

int pv_store_open(struct pv_store **store);
void pv_store_close(struct pv_store *store);

/* Copies a node's value (at most max bytes) and returns its whole length; or -errno. */
int64_t pv_store_read(struct pv_store *store, const char *path, char *into, size_t max);

/* The names of a node's children, each followed by a NUL; otherwise like the function above. */
int64_t pv_store_list(struct pv_store *store, const char *path, char *into, size_t max);

int pv_store_write(struct pv_store *store, const char *path, const char *value, size_t length);
int pv_store_remove(struct pv_store *store, const char *path);

/*
 * Events of a node and everything below it; one arrives at once. pv_store_event() takes the next
 * one: it puts the path into `into`, NUL-terminated, and returns its length, or 0 when there is
 * none now.
 */
int pv_store_watch(struct pv_store *store, const char *path);
int pv_store_unwatch(struct pv_store *store, const char *path);
int64_t pv_store_event(struct pv_store *store, char *into, size_t max);

/* Readable when there may be an event. */
int pv_store_fileno(struct pv_store *store);

#endif
