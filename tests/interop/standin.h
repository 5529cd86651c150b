/*
 * A stand-in for the parts of Xen that libxenvchan stands on: grants, event channels and xenstore,
 * for two "domains" that are threads of one process. standin.c defines the very functions that
 * libxenevtchn, libxengnttab and libxenstore export; a program that is linked with -rdynamic thereby
 * puts them before the real ones, and Debian's unmodified libxenvchan.so runs on them.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <stdint.h>

/* Which domain the calling thread belongs to. Handles remember it from their opening on. */
extern _Thread_local unsigned standin_domain;

/*
 * How long a blocking wait for an event may last, in milliseconds. Afterwards the wait fails with
 * ETIME, which nothing else here does: the caller knows that a wake-up was missed.
 */
extern int standin_patience;

/*
 * Waits for fd to become readable, as every wait of a test does: notes how long it took and gives up
 * after standin_patience. Returns 0, or -1 with errno ETIME.
 */
int standin_wait(int fd);

/*
 * Whether a thread sleeps in standin_wait() and no event is there that would wake it. Only for a
 * caller that knows that at most one other thread waits.
 */
int standin_asleep(void);

/* The longest wait of any thread so far, in nanoseconds. */
int64_t standin_longest_wait(void);

/* What a closed channel must have given back: grants, event ports and xenstore nodes in use. */
unsigned standin_in_use(void);

#endif
