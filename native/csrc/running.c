#include "running.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "own_thread.h"

static struct {
    pthread_mutex_t lock;
    struct pv_running counted; /* with the lock held */
    bool is_started;
    int words;    /* the descriptor for the last words, or -1; with the lock held */
    int is_alive; /* since the last tick; atomic */
} own = {.lock = PTHREAD_MUTEX_INITIALIZER, .words = -1};

int pv_running_tick(struct pv_running *running, int64_t now, int is_alive)
{
    int64_t slept = now - running->seen;

    if (slept > PV_TICK_NS_MAX)
        running->lost += slept - PV_TICK_NS_MAX;
    running->seen = now;
    running->silent = is_alive ? 0 : running->silent + 1;
    return running->limit && running->silent >= running->limit;
}

static int64_t monotonic(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Ends a process whose SIGABRT handler hangs as well. */
static void *end_anyway(void *unused)
{
    const struct timespec patience = {.tv_sec = PV_LAST_WORDS_S};

    (void)unused;
    nanosleep(&patience, NULL);
    _exit(128 + SIGABRT);
}

/* Gives the reason if `words` accepts it at once, and ends the process in any case. */
static void end_hanging(int words)
{
    static const char last_words[] =
        "the event loop hangs: this process ends itself, to be started again\n";
    struct pollfd taker = {.fd = words, .events = POLLOUT};

    if (pv_own_thread(end_anyway, NULL, 0))
        signal(SIGABRT, SIG_DFL); /* its handler writes too, and might block for ever */
    else if (words >= 0 && poll(&taker, 1, 0) == 1 && taker.revents == POLLOUT) {
        ssize_t ignored = write(words, last_words, sizeof last_words - 1);

        (void)ignored;
    }
    /* A core dump would wait for all threads, also for one that waits in the kernel for what
     * another one was to bring, and would close nothing meanwhile (own_files.h). */
    prctl(PR_SET_DUMPABLE, 0);
    abort();
}

static void *count(void *unused)
{
    const struct timespec tick = {.tv_nsec = PV_TICK_NS};

    (void)unused;
    for (;;) {
        int is_too_many, words;

        nanosleep(&tick, NULL); /* relative: after a pause it ends at once */
        pthread_mutex_lock(&own.lock);
        is_too_many = pv_running_tick(&own.counted, monotonic(),
                                      __atomic_exchange_n(&own.is_alive, 0, __ATOMIC_RELAXED));
        words = own.words;
        pthread_mutex_unlock(&own.lock);
        if (is_too_many)
            end_hanging(words);
    }
    return NULL;
}

int pv_running_start(void)
{
    int error = 0;

    pthread_mutex_lock(&own.lock);
    if (!own.is_started) {
        own.counted.seen = monotonic();
        error = pv_own_thread(count, NULL, 0);
        own.is_started = !error;
    }
    pthread_mutex_unlock(&own.lock);
    return error;
}

double pv_running_at(const struct pv_running *running, int64_t now)
{
    int64_t sure_until = running->seen + PV_TICK_NS_MAX;

    return (double)((now < sure_until ? now : sure_until) - running->lost) / 1e9;
}

double pv_running_now(void)
{
    struct pv_running counted;

    /* Looked at first: if the thread counts in between, the clock stands still for a moment, but
     * does not go back. */
    pthread_mutex_lock(&own.lock);
    counted = own.counted;
    pthread_mutex_unlock(&own.lock);
    return pv_running_at(&counted, monotonic());
}

void pv_running_limit(unsigned ticks, int words)
{
    pthread_mutex_lock(&own.lock);
    own.words = words;
    own.counted.limit = ticks;
    own.counted.silent = 0;
    pthread_mutex_unlock(&own.lock);
}

void pv_running_alive(void)
{
    __atomic_store_n(&own.is_alive, 1, __ATOMIC_RELAXED);
}
