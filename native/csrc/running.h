/*
 * The time in which this process ran, and the end of a process whose event loop hangs.
 *
 * The machine's clock continues while a VM is paused, its host sleeps, or the process is stopped.
 * To a program that looks at the clock afterwards, a pause of a minute and a loop that hung for one
 * are the same. A thread tells them apart by sleeping for a tick at a time: a pause is one sleep
 * that took long, a hang is many of the usual length. The thread needs nothing of Python, so it
 * also detects a loop that hangs with the interpreter's lock held.
 */
#ifndef PEDOS_RUNNING_H
#define PEDOS_RUNNING_H

#include <stdint.h>

/* Short compared with every deadline (half a second is the least), and next to no work. */
#define PV_TICK_NS 250000000
/* What a sleep of a tick counts at most: a busy machine wakes the thread late. */
#define PV_TICK_NS_MAX 500000000

/* After this time the process ends without having reported where it hangs: no reader takes the
 * report. */
#define PV_LAST_WORDS_S 2

/* What the thread counts. Times are of CLOCK_MONOTONIC, in ns. */
struct pv_running {
    int64_t seen;    /* when it last looked */
    int64_t lost;    /* how far the clock moved until then while nothing ran */
    unsigned silent; /* ticks since the event loop's last sign of life */
    unsigned limit;  /* so many are a hang; 0: none is */
};

/* One sleep has ended. Returns whether it was one too many. */
int pv_running_tick(struct pv_running *running, int64_t now, int is_alive);

/* Starts the thread of this process, once; 0 or -errno. */
int pv_running_start(void);

/* The seconds that were not lost when CLOCK_MONOTONIC is `now`. The thread may still have to wake up
 * after a pause: until then they stand still. */
double pv_running_at(const struct pv_running *running, int64_t now);

/* That of this process, now. */
double pv_running_now(void);

/* From now on so many ticks without a sign of life end the process by SIGABRT; 0: never. `words` is
 * the descriptor for the reason, -1 if there is none. */
void pv_running_limit(unsigned ticks, int words);

/* The sign of life. */
void pv_running_alive(void);

#endif
