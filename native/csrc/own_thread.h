/*
 * Threads of ours in a program that has its own, which signals are for.
 */
#ifndef PEDOS_OWN_THREAD_H
#define PEDOS_OWN_THREAD_H

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

/*
 * Starts a thread that no signal interrupts, but for those of its own faults: these are reported,
 * and glibc 2.41 does not run abort's handler in a thread that blocks it. 0 or -errno.
 */
static inline int pv_quiet_thread(pthread_t *thread, const pthread_attr_t *attributes,
                                  void *(*run)(void *), void *argument)
{
    static const int faults[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    sigset_t every, before;
    int error;

    sigfillset(&every);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&every, faults[i]);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    error = pthread_create(thread, attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

/* One that nobody waits for. `stack` is its size in bytes, 0 the usual one. 0 or -errno. */
static inline int pv_own_thread(void *(*run)(void *), void *argument, size_t stack)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int error;

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (stack)
        pthread_attr_setstacksize(&attributes, stack);
    error = pv_quiet_thread(&thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    return error;
}

#endif
