/* What the C ping-pong programs share. */
#ifndef BENCH_PINGPONG_H
#define BENCH_PINGPONG_H

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64 };
#define WARM_UP(trips) ((trips) / 10)

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

static inline long long now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* fork(), with the parent on one core and the child, which dies with it, on the other. */
static inline pid_t fork_pinned(int parent_core, int child_core)
{
    pid_t pid = fork();
    cpu_set_t core;

    if (pid < 0)
        die("fork");
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    CPU_ZERO(&core);
    CPU_SET(pid ? parent_core : child_core, &core);
    if (sched_setaffinity(0, sizeof core, &core))
        die("sched_setaffinity");
    return pid;
}

#endif
