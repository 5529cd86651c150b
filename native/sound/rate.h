/*
 * How much of a borrowed microphone a target keeps in its buffer, and at what rate it plays it.
 *
 * Two machines have two clocks, some hundred ppm apart. What arrives too fast would be heard later
 * and later, and what arrives too slowly would run out. So the fill of the buffer is kept at a
 * target by a small correction of the rate (a PI control), and what no correction can mend is
 * mended at once: an empty buffer is filled up to the target before it is played again, and an
 * overfull one is emptied down to it. Pure: no clock, no I/O, no allocation; docs/decisions has the
 * measurements.
 *
 * All amounts are samples at RATE_HZ.
 */
#ifndef PEDOS_SOUND_RATE_H
#define PEDOS_SOUND_RATE_H

#include <stdbool.h>
#include <stdint.h>

#define RATE_HZ 48000u
#define RATE_MS (RATE_HZ / 1000u)

/*
 * What is kept on top of one cycle of the server: the 10 ms that a source collects before it sends
 * them, and twice as much for what comes late. On a busy machine with two processors arrivals are
 * at most 8 ms late in 99.9 %, and some 20 ms late a few times a minute.
 */
#define RATE_BASE (30u * RATE_MS)

/* A cycle longer than that counts as that: PipeWire's largest usual one is 2048. */
#define RATE_CYCLE_MAX 2048u

/*
 * What counts is the longest cycle of the last half second to a second. A server changes it when a
 * program comes that wants less delay, so usually right after a recording has begun; its default of
 * 1024 would be 16 ms more.
 */
#define RATE_CYCLE_FOR (RATE_HZ / 2u)

/*
 * The samples that a source has collected since its last message count as buffered: without them
 * the fill seen at a cycle is a sawtooth whose phase moves with the very difference of the clocks
 * that is to be measured. Two messages' worth: a longer pause is a source that lags, or that
 * stopped.
 */
#define RATE_AGE_MAX (20u * RATE_MS)

/*
 * Each episode in which the buffer ran empty keeps 3 ms more, up to 60: a machine that is late more
 * often than RATE_BASE bears gets the delay that it needs, and one late moment leaves the delay
 * within 5 ms of what it was. Given back 1 ms every 20 s in which the lowest fill left room for
 * that. A machine that stalls for a while makes one episode, whatever number of cycles sees it.
 */
#define RATE_EXTRA_STEP (3u * RATE_MS)
#define RATE_EXTRA_MAX (60u * RATE_MS)
#define RATE_EXTRA_BACK RATE_MS
#define RATE_BACK_AFTER (20u * RATE_HZ)
#define RATE_EPISODE RATE_HZ

/*
 * More than that above the target is not worth a slow correction of half a minute: it is dropped.
 */
#define RATE_OVER (60u * RATE_MS)

/*
 * Whenever playing begins, the fill is only looked at for a second: when the last message was sent
 * cannot be told at first, after a stall least of all. What is more than 2 ms too much by then is
 * dropped as well, next to the gap that was heard anyway, and the control begins at its target.
 */
#define RATE_LOOK RATE_HZ
#define RATE_TRIM (2u * RATE_MS)

/*
 * Clocks of sound hardware are within 200 ppm; more than 0.5 % could be heard as a change of pitch.
 */
#define RATE_CORRECTION_MAX 0.005

struct rate {
    double fill;     /* smoothed */
    double integral; /* the part of the correction that lasts: the difference of the clocks */
    double correction;
    uint32_t looked;    /* samples that `fill` is the mean of, up to RATE_LOOK */
    uint32_t cycle;     /* the largest one lately */
    uint32_t cycle_now; /* the largest one of the last cycle_for samples */
    uint32_t cycle_for;
    uint32_t extra;     /* kept for what comes late, on top of the rest */
    uint32_t lowest;    /* what was left after a cycle, in the window that is looked at */
    uint32_t quiet;     /* samples played without an episode, up to RATE_BACK_AFTER */
    uint32_t episodes;  /* since rate_init, for logs and tests */
    uint32_t dropped;   /* samples, since rate_init */
    bool is_waiting;    /* until there is enough to begin with */
};

/*
 * What a cycle does: drops the oldest, then plays; what is missing to `wanted` is silence behind
 * it.
 */
struct rate_step {
    uint32_t drop, play;
};

void rate_init(struct rate *rate);

/*
 * A recording begins with an empty buffer. What was learnt of the clocks and of lateness stays: it
 * is the same machine.
 */
void rate_start(struct rate *rate);

/*
 * A cycle of the server, which wants that many samples; buffered are there, and the last ones
 * arrived `age` ago.
 */
struct rate_step rate_cycle(struct rate *rate, uint32_t wanted, uint32_t buffered, uint32_t age);

/* What the fill is kept at. */
uint32_t rate_target(const struct rate *rate);

/*
 * How much faster than its own clock the target has to play: 1.001 for a source that is 1000 ppm
 * fast.
 */
double rate_correction(const struct rate *rate);

#endif
