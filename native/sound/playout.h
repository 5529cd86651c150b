/*
 * What a borrowed microphone sounds like in its target: samples are fed as they come from the other
 * machine, and played cycle by cycle in the server's real-time thread, at a rate that keeps the
 * delay (rate.h). No locks, no allocation, no clock of its own.
 */
#ifndef PEDOS_SOUND_PLAYOUT_H
#define PEDOS_SOUND_PLAYOUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fifo.h"
#include "rate.h"

struct playout {
    struct fifo fifo;
    struct rate rate;    /* the real-time thread's */
    _Atomic bool is_new; /* a recording begins: the real-time thread starts its control anew */
};

/* For the owner, while no real-time thread plays. */
void playout_init(struct playout *playout);

/* The main loop's. What was fed before is not heard any more; is_new: a recording begins. */
void playout_forget(struct playout *playout, bool is_new);

/* The main loop's, as fifo_write(). now_ns is of the clock that playout_fill() is told as well. */
void playout_feed(struct playout *playout, const int16_t *samples, size_t count, int64_t now_ns);

/*
 * The real-time thread's: writes as many samples as the cycle wants, with silence for what is
 * lacking. Returns how much faster than its own clock the target has to play from now on.
 */
double playout_fill(struct playout *playout, float *to, uint32_t wanted, int64_t now_ns);

#endif
