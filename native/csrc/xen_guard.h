/*
 * A channel to another domain, and the guard that watches for that domain's end. Shared by the files
 * of the Xen attachment alone; xen.h declares what others use.
 */
#ifndef PEDOS_XEN_GUARD_H
#define PEDOS_XEN_GUARD_H

#include "channel.h"
#include "xen_load.h"
#include "xen_presence.h"

struct xen_channel {
    struct pv_channel channel; /* first: a pointer to one is a pointer to the other */
    struct libxenvchan *vchan;
    unsigned domain, peer;
    bool peer_seen; /* the peer's presence; once guarded, only the guard's thread looks at it */
    char path[PATH_SIZE]; /* path of the rendezvous that is still to be removed; "" if none */
    int guard_fd;         /* closed when the peer's domain is gone; -1: it was, or none */
    struct xen_channel *next_guarded;
    bool guarded, unsure; /* unsure: the hypervisor did not tell, and xenstore was not asked yet */
};

/* Ends pv_xen_guard(), and closes what it was given. Safe without one. */
void xen_unguard(struct xen_channel *own) __attribute__((visibility("hidden")));

#endif
