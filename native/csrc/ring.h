/*
 * The ring engine: two byte streams in shared memory, in libxenvchan's own layout, so that a peer
 * which uses the plain library understands it (public header xen/io/libxenvchan.h, Xen 4.17).
 *
 * This module does not depend on where the memory comes from or how a peer is woken. The code that
 * attaches a ring passes mapped memory and a callback; shm.c does so for a memfd and eventfds.
 *
 * A malicious peer can change everything in the shared page at any moment. Therefore:
 *  - our own two indices live in private memory; the page holds copies that we publish, never read;
 *  - each index of the peer is read once per look, checked, and only the checked copy is used;
 *  - an impossible index fails the channel for good, and the peer is told by our live flag;
 *  - geometry (orders, addresses) is fixed at attach and never read again.
 */
#ifndef PEDOS_RING_H
#define PEDOS_RING_H

#include <stddef.h>
#include <stdint.h>

#define PV_PAGE_SIZE 4096u  /* one grant, whose size does not depend on the machine's pages */
#define PV_ORDER_MIN 10u    /* 1 KiB, inside the control page at offset 1024 */
#define PV_ORDER_INPAGE 11u /* 2 KiB, inside the control page at offset 2048 */
#define PV_ORDER_PAGES 12u  /* from here on a ring has pages of its own */
#define PV_ORDER_MAX 20u    /* 1 MiB: the grant list of a larger ring does not fit the page */

#define PV_NOTIFY_WRITE 1u /* "tell me when you have written" */
#define PV_NOTIFY_READ 2u  /* "tell me when you have read" */

#define PV_LIVE_CLOSED 0u
#define PV_LIVE_OPEN 1u
#define PV_LIVE_ABSENT 2u /* cli_live only: the client has not come yet */

/* The functions below return these instead of a count. */
#define PV_WOULD_BLOCK (-1) /* nothing to read, or no room; armed if the function says so */
#define PV_CLOSED (-2)      /* the peer closed, and everything that it sent has been read */
#define PV_DIED (-3)        /* the peer is gone without closing, and everything has been read */
#define PV_BROKEN (-4)      /* the peer published impossible indices: failed for good */
#define PV_FLOODED (-5)     /* the peer woke us again and again without news: failed for good */

struct pv_indices {
    uint32_t cons, prod; /* run freely; masked on use; full is prod - cons == size */
};

struct vchan_interface {
    struct pv_indices left, right;    /* left: client to server; right: server to client */
    uint16_t left_order, right_order; /* log2 of the sizes */
    uint8_t cli_live, srv_live;
    uint8_t cli_notify, srv_notify; /* cli_notify: set by the server, cleared by the client */
    uint32_t grants[];              /* unused with a memfd */
};

_Static_assert(offsetof(struct vchan_interface, left_order) == 16, "libxenvchan's layout");
_Static_assert(offsetof(struct vchan_interface, cli_live) == 20, "libxenvchan's layout");
_Static_assert(offsetof(struct vchan_interface, cli_notify) == 22, "libxenvchan's layout");
_Static_assert(offsetof(struct vchan_interface, grants) == 24, "libxenvchan's layout");

struct pv_direction {
    uint8_t *data;
    uint32_t size;           /* bytes, a power of two */
    uint32_t own;            /* our index; this copy is the truth */
    uint32_t peer;           /* the peer's index as it last passed the check */
    uint32_t *publish;       /* in the page: where the peer reads `own` */
    const uint32_t *watched; /* in the page: where the peer publishes its index */
};

struct pv_ring {
    struct pv_direction in, out;
    uint8_t *own_live;
    const uint8_t *peer_live;
    uint8_t *asking; /* notify bits that we set for the peer */
    uint8_t *asked;  /* notify bits that the peer set for us */
    uint8_t withheld; /* something was read, and a writer that waits was not told yet */
    uint8_t closed;  /* we closed: nothing is written any more */
    uint8_t final;   /* the peer closed or died, and in.peer is final */
    uint8_t gone;    /* the peer is known to be dead (pv_ring_peer_gone) */
    uint8_t clean;   /* valid with final: it closed before it went */
    int8_t broken;   /* 0, or the code with which everything fails for good */
    void (*notify)(void *arg); /* wakes the peer; must not block */
    void *notify_arg;
};

/* Whether libxenvchan could have made rings of these orders side by side. */
int pv_orders_valid(unsigned left_order, unsigned right_order);

/* Bytes of control page and rings, laid out one after the other: page, left, right. */
size_t pv_layout_size(unsigned left_order, unsigned right_order);

/* Prepares a fresh (zeroed) page as the server does before it shares it. */
void pv_page_init(struct vchan_interface *page, unsigned left_order, unsigned right_order);

/*
 * Attaches to a page whose orders the caller has read once and validated. left and right are the
 * rings' own memory; they are ignored for orders that live inside the page. A client announces
 * itself here (cli_live), so this comes last in a client's set-up.
 */
void pv_ring_attach(struct pv_ring *ring, struct vchan_interface *page, unsigned left_order,
                    unsigned right_order, void *left, void *right, int is_server,
                    void (*notify)(void *), void *notify_arg);

/*
 * Spans for zero-copy: the longest run of bytes that can be read (written) without wrapping, at
 * *span. Returns its length, or a negative code. They do not arm.
 */
int64_t pv_ring_readable(struct pv_ring *ring, uint8_t **span);
int64_t pv_ring_writable(struct pv_ring *ring, uint8_t **span);

/* All bytes that are ready (that fit), over the wrap; or a negative code. */
int64_t pv_ring_ready(struct pv_ring *ring);
int64_t pv_ring_room(struct pv_ring *ring);

/* Tells the peer that n bytes were read from (written to) the span; n at most the span's length. */
void pv_ring_consume(struct pv_ring *ring, uint32_t n);
void pv_ring_produce(struct pv_ring *ring, uint32_t n);

/* Asks for a wake-up (PV_NOTIFY_*). The caller must look again before it sleeps. */
void pv_ring_arm(struct pv_ring *ring, unsigned bits);

/* The peer is dead: its published bytes are read, then PV_DIED (or PV_CLOSED, if it had closed). */
void pv_ring_peer_gone(struct pv_ring *ring);

/* Fails the channel for good with code (PV_BROKEN, PV_FLOODED), closes it, returns code. */
int64_t pv_ring_fail(struct pv_ring *ring, int8_t code);

/* Says goodbye. The peer still reads everything that was written; we may still read, too. */
void pv_ring_close(struct pv_ring *ring);

#endif
