/*
 * Samples on their way from the program's event loop to a server's real-time thread: one producer,
 * one consumer, no lock and no allocation. Each side writes its own places alone; they count
 * samples for ever.
 */
#ifndef PEDOS_SOUND_FIFO_H
#define PEDOS_SOUND_FIFO_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/*
 * 341 ms: more than the fill control lets stand (its largest target and what it drops above that),
 * and what the channel holds besides. A power of two.
 */
#define FIFO_SAMPLES 16384u

struct fifo {
    int16_t samples[FIFO_SAMPLES];
    _Atomic uint64_t written; /* the producer's */
    _Atomic uint64_t read;    /* the consumer's */
    _Atomic uint64_t floor;   /* the producer's: nothing before it is to be heard any more */
    _Atomic int64_t last_ns;  /* the producer's: when it wrote last, of CLOCK_MONOTONIC */
};

/* For the owner, while no consumer runs. */
void fifo_init(struct fifo *fifo);

/*
 * The producer's. What does not fit is not written; returns how many samples were. samples == NULL:
 * silence.
 */
size_t fifo_write(struct fifo *fifo, const int16_t *samples, size_t n, int64_t now_ns);

/* The producer's: what was written before is never read. */
void fifo_flush(struct fifo *fifo);

/* The consumer's: how many samples are there, once those before the floor are gone. */
uint32_t fifo_ready(struct fifo *fifo);

/* The consumer's: drop, or take as floats from -1 to 1; at most what fifo_ready() said. */
void fifo_drop(struct fifo *fifo, uint32_t n);
void fifo_take(struct fifo *fifo, float *to, uint32_t n);

#endif
