/*
 * The time in which this process ran, and an end of a process whose event loop hangs in it.
 *
 * The machine's clock goes on while a VM is paused, its host sleeps, or the process is stopped. To
 * a program that looks at the clock afterwards, a pause of a minute and a loop that hung for one are
 * the same. A thread tells them apart by sleeping for a tick at a time: a pause is one sleep that
 * took long, a hang is many of the usual length. The thread needs nothing of Python, so it also
 * sees a loop that hangs with the interpreter's lock held.
 */
#ifndef PEDOS_RUNNING_H
#define PEDOS_RUNNING_H

#include <stdint.h>

/* Short against every deadline (half a second is the least), and next to nothing as work. */
#define PV_TICK_NS 250000000
/* What a sleep of a tick counts at most: a machine that is busy wakes the thread late. */
#define PV_TICK_NS_MAX 500000000

/* After so long the process ends without having said where it hangs: nothing takes its words. */
#define PV_LAST_WORDS_S 2

/* What the thread counts. Times are of CLOCK_MONOTONIC, in ns. */
struct pv_running {
    int64_t seen;    /* when it last looked */
    int64_t lost;    /* what the clock went on by until then while nothing ran */
    unsigned silent; /* ticks since the event loop last gave a sign of life */
    unsigned limit;  /* so many are a hang; 0: none is */
};

/* One sleep has ended. Whether it was one too many. */
int pv_running_tick(struct pv_running *running, int64_t now, int is_alive);

/* Starts the thread of this process, once; 0 or -errno. */
int pv_running_start(void);

/* What it has counted so far. */
void pv_running_look(struct pv_running *running);

/* From now on so many ticks without a sign of life end the process by SIGABRT; 0: none do. `words`
 * is the descriptor that is told, -1 if there is none. */
void pv_running_limit(unsigned ticks, int words);

/* The sign of life. */
void pv_running_alive(void);

#endif
