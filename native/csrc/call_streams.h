/*
 * The streams of a call at one end: from a descriptor into the ring, behind the header of a frame,
 * and out of the ring into a descriptor. Bytes are copied once each way.
 *
 * A descriptor that takes nothing holds its bytes back in the ring, and so the other end. But
 * frames about other things may stand behind them. Then the bytes go into memory of our own, which
 * holds all that the other end has credit for: so each end can always read on.
 */
#ifndef PEDOS_CALL_STREAMS_H
#define PEDOS_CALL_STREAMS_H

#include <stdbool.h>

#include "call_fd.h"
#include "call_frames.h"
#include "channel.h"

/* Less room than one part in this many counts as none, so that a full ring is not filled in crumbs.
 * */
#define PV_CALL_ROOM_FRACTION 8

/* What data leaves free in the ring: the longest of the other frames, so that one of them always
 * gets past a stream that is held back. */
#define PV_CALL_RESERVE 256u

/* From the ring to a descriptor. */
struct pv_inward {
    struct pv_fd fd;
    uint8_t *bytes;     /* what was taken out of the ring before fd took it; NULL: never was any */
    size_t start, have;
    uint32_t unpaid;    /* bytes that are done with, and for which no credit was given yet */
    uint8_t stream;     /* enum pv_call_stream */
    uint8_t blocked;    /* fd takes nothing at the moment */
    uint8_t has_eof;    /* nothing more comes */
    uint8_t is_over;    /* fd is gone; what still comes is thrown away */
    uint8_t is_unwanted; /* it went before the stream's end, and the other end may know */
};

/* From a descriptor to the ring. */
struct pv_outward {
    struct pv_fd fd;
    uint8_t stream;
    uint8_t dry;       /* fd has nothing at the moment */
    uint8_t ring_full; /* wait for the other end to read */
    uint8_t is_over;   /* fd is gone: the stream ends */
    uint8_t has_ended; /* by its program, and not because it is unwanted */
};

/* What stands first in the ring, when it is data: the frame's header was read. */
struct pv_head {
    struct pv_inward *to; /* NULL: a header comes next */
    uint32_t skip;        /* bytes of the header that are still in the ring */
    uint32_t part;        /* bytes of the frame's data that are still to come or in the ring */
    uint64_t scanned;     /* bytes from the first on in which only data of this stream was seen */
};

/* A copy of bytes of the ring, from at bytes behind its first unread one on. */
void pv_ring_copy(const struct pv_ring *ring, uint32_t at, uint8_t *bytes, uint32_t count);

/*
 * Publishes bytes for which the other end has to be woken, although it may not have asked: while its
 * stdin or stdout is blocked, it waits for no more of that, but has to see everything else. The
 * caller does that soon, once for several frames.
 */
void pv_ring_say(struct pv_ring *ring, uint32_t size);

/* Writes and says a frame that is not data, for which there is room. */
void pv_ring_put(struct pv_ring *ring, const uint8_t *frame, uint32_t size);

/* Takes bytes off the ring's front. */
void pv_head_consume(struct pv_head *head, struct pv_ring *ring, uint32_t count);

/*
 * Data at the front of the ring, of which ready bytes are there; true if something changed. -ENOMEM
 * at *error: there is no memory for what has to be taken out.
 */
bool pv_inward_take(struct pv_head *head, struct pv_ring *ring, uint32_t ready, int *error);

/* What was taken out before; true if something changed. Closes fd after the end. */
bool pv_inward_flush(struct pv_inward *inward);

/* No byte goes to fd any more. */
void pv_inward_close(struct pv_inward *inward);

/*
 * Reads from fd into the ring, if credit and room allow. room: as pv_ring_room(), not negative.
 * Returns how many bytes, PV_FD_LATER, or PV_FD_OVER when the stream has ended. The frame's header
 * is written, but nothing is published yet.
 */
ssize_t pv_outward_fill(struct pv_outward *outward, struct pv_ring *ring, uint32_t room,
                        uint32_t credit);

void pv_outward_close(struct pv_outward *outward);

/* The room that data waits for. */
uint32_t pv_outward_room(const struct pv_ring *ring);

#endif
