/*
 * The pump: moves bytes between a channel and file descriptors, both ways in one loop, with read(2)
 * and write(2) straight on the ring's memory. It runs in a thread of its own, without Python.
 *
 * With a check, all bytes are copied first: each way into memory that the peer cannot change, where
 * they are checked and from which they go on.
 */
#ifndef PEDOS_PUMP_H
#define PEDOS_PUMP_H

#include "channel.h"
#include "check.h"

/* Why a pump ended: the first thing that happened. */
enum pv_pump_why {
    PV_PUMP_INPUT_ENDED = 1, /* end of file on fd_in */
    PV_PUMP_INPUT_FAILED,    /* read error on fd_in; see error */
    PV_PUMP_OUTPUT_FAILED,   /* fd_out accepts no more (EPIPE and others); see error */
    PV_PUMP_PEER_CLOSED,
    PV_PUMP_PEER_DIED,
    PV_PUMP_PEER_BROKEN,  /* impossible indices */
    PV_PUMP_PEER_FLOODED, /* too many wake-ups without news */
    PV_PUMP_CANCELLED,
    PV_PUMP_FAILED,  /* poll or fcntl failed, or no memory; see error */
    PV_PUMP_REFUSED, /* by the check, which has the reason */
};

struct pv_pump {
    uint64_t to_ring, to_fd; /* bytes moved */
    int why, error;
    int cancel_fd;          /* eventfd that wakes the loop */
    struct pv_check *check; /* NULL: none; set between pv_pump_init() and pv_pump_run() */
    int unalone; /* 0, or -errno: why the descriptor is not the pump's alone */
    uint8_t alone, cancelled;
};

/* Prepares one run; 0 or -errno. */
int pv_pump_init(struct pv_pump *pump);

/* Makes pv_pump_run() return soon. The only function here that another thread may call. */
void pv_pump_cancel(struct pv_pump *pump);

/*
 * Runs until either side ends: what was read from fd_in is in the ring, what was in the ring is
 * written to fd_out, and then the channel is closed. fd_in and fd_out may be the same. They are
 * non-blocking while this runs, and stay open. SIGPIPE must be ignored (Python does so).
 *
 * With `alone`, set as `check` is, they are the same, and only the pump has that descriptor
 * meanwhile, so that it is closed as soon as the process is killed (own_files.h): threads of this
 * process may wait in the kernel for what comes through it. If that cannot be, `unalone` says why.
 */
void pv_pump_run(struct pv_pump *pump, struct pv_channel *channel, int fd_in, int fd_out);

void pv_pump_done(struct pv_pump *pump);

#endif
