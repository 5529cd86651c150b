/* The time that waits are measured by. */
#ifndef PEDOS_CALL_CLOCK_H
#define PEDOS_CALL_CLOCK_H

#include <time.h>

/* Milliseconds since some moment, which go on whatever the wall clock does. */
static inline long clock_now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

#endif
