/* call_crew.h describes this. */
#include "call_crew.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "call_state.h"
#include "own_thread.h"

/* Bytes of a thread's stack; the pump keeps at most 16 KiB on it. */
#define STACK (256u * 1024u)

struct pv_crew {
    int fd;         /* eventfd */
    unsigned users; /* the loop, and the calls that run */
    struct pv_call *first, **last; /* calls with news */
};

struct worker {
    struct worker *next; /* among those that wait */
    struct pv_call *call;
    sem_t given;
};

/* All crews of the process share the threads; everything here and the `crewed` of calls is looked at
 * with the lock held, which nobody holds for long. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t ended; /* some call */
    struct worker *waiting;
    unsigned spare, running;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};

static void leave(struct pv_crew *crew)
{
    if (--crew->users)
        return;
    close(crew->fd);
    free(crew);
}

/* With the lock held; true if the loop has to be woken. */
static bool note(struct pv_call *call, int event)
{
    struct pv_crewed *crewed = &call->crewed;
    struct pv_crew *crew = crewed->crew;
    bool is_first = !crew->first;

    crewed->news |= crewed->later;
    crewed->later = 0;
    if (event != PV_CALL_NOTE_DUE)
        crewed->news |= 1u << event;
    if (crewed->is_listed)
        return false;
    crewed->is_listed = true;
    crewed->next = NULL;
    *crew->last = call;
    crew->last = &crewed->next;
    return is_first;
}

/* With the lock held. */
static void take_off(struct pv_call *call)
{
    struct pv_crew *crew = call->crewed.crew;
    struct pv_call **at = &crew->first;

    while (*at != call)
        at = &(*at)->crewed.next;
    *at = call->crewed.next;
    if (!*at)
        crew->last = at;
    call->crewed.is_listed = false;
}

static void wake(int fd)
{
    const uint64_t one = 1;
    ssize_t ignored = write(fd, &one, sizeof one);

    (void)ignored; /* EAGAIN: it is readable already */
}

static void tell(struct pv_call *call, int event, int number)
{
    unsigned bit = 1u << event;
    bool is_news;

    if (call->crewed.lazily & bit) {
        call->crewed.later |= bit; /* only this thread looks at it until it is noted */
        pv_call_remind(call, PV_CREW_LAZY_MS);
        return;
    }
    if (event == PV_CALL_NOTE_DUE ? !call->crewed.later : !(call->crewed.wanted & bit))
        return;
    pthread_mutex_lock(&all.lock);
    if (event == PV_CALL_NOTE_SIGNAL)
        call->crewed.signals |= UINT64_C(1) << (number - 1);
    else if (event == PV_CALL_NOTE_MAIN_EXITED)
        call->crewed.status = number;
    else if (number)
        call->crewed.by_number |= bit;
    is_news = note(call, event);
    pthread_mutex_unlock(&all.lock);
    if (is_news)
        wake(call->crewed.crew->fd);
}

/* One call from its beginning to its end. */
static void run(struct pv_call *call)
{
    struct pv_crewed *crewed = &call->crewed;
    struct pv_crew *crew = crewed->crew;
    int event, number, error;
    bool is_news, is_met;

    for (int i = 3; i < PV_CREW_FDS; i++)
        if (crewed->fds[i] >= 0)
            close(crewed->fds[i]);
    is_met = pv_keeper_meet(call, &error);
    if (is_met) {
        error = pv_call_take(call, crewed->fds[0], crewed->fds[1], crewed->fds[2], crewed->shuts);
        while (!error && (event = pv_call_run(call, crewed->channel, &number)))
            tell(call, event, number);
        pv_call_drop(call);
    }
    pthread_mutex_lock(&all.lock);
    crewed->error = error;
    is_news = note(call, is_met ? PV_CALL_DONE : PV_CALL_UNMET);
    crewed->is_running = false;
    all.running--;
    pthread_cond_broadcast(&all.ended);
    pthread_mutex_unlock(&all.lock);
    /* The call may be freed by now, but not the crew. */
    if (is_news)
        wake(crew->fd);
    pthread_mutex_lock(&all.lock);
    leave(crew);
    pthread_mutex_unlock(&all.lock);
}

static void *work(void *arg)
{
    struct worker *me = arg;
    bool stays;

    do {
        run(me->call);
        pthread_mutex_lock(&all.lock);
        stays = all.spare < PV_CREW_SPARE;
        if (stays) {
            all.spare++;
            me->next = all.waiting;
            all.waiting = me;
        }
        pthread_mutex_unlock(&all.lock);
        while (stays && sem_wait(&me->given) < 0)
            ; /* EINTR */
    } while (stays);
    sem_destroy(&me->given);
    free(me);
    return NULL;
}

/* Starts a thread for the call. */
static int start_for(struct pv_call *call)
{
    struct worker *worker = calloc(1, sizeof *worker);
    int error;

    if (!worker)
        return -ENOMEM;
    worker->call = call;
    sem_init(&worker->given, 0, 0);
    error = pv_own_thread(work, worker, STACK);
    if (error) {
        sem_destroy(&worker->given);
        free(worker);
    }
    return error;
}

int pv_crew_run(struct pv_crew *crew, uint64_t number, struct pv_call *call,
                struct pv_channel *channel, const int *fds, int shuts, unsigned wanted,
                unsigned lazily)
{
    struct worker *worker;
    int error = 0;

    call->crewed = (struct pv_crewed){.crew = crew,
                                      .number = number,
                                      .channel = channel,
                                      .shuts = shuts,
                                      .wanted = wanted,
                                      .lazily = lazily,
                                      .is_running = true};
    memcpy(call->crewed.fds, fds, sizeof call->crewed.fds);
    pthread_mutex_lock(&all.lock);
    if (all.running >= PV_CREW_CALLS_MAX) {
        pthread_mutex_unlock(&all.lock);
        call->crewed.is_running = false;
        return -EAGAIN;
    }
    all.running++;
    crew->users++;
    worker = all.waiting;
    if (worker) {
        all.waiting = worker->next;
        all.spare--;
        worker->call = call;
    }
    pthread_mutex_unlock(&all.lock);
    if (worker) {
        sem_post(&worker->given);
        return 0;
    }
    error = start_for(call);
    if (error) {
        pthread_mutex_lock(&all.lock);
        all.running--;
        call->crewed.is_running = false;
        leave(crew);
        pthread_mutex_unlock(&all.lock);
    }
    return error;
}

/* The lowest of the call's news, and DONE, which is 0, as the last one. */
static int lowest(struct pv_call *call, int *number)
{
    struct pv_crewed *crewed = &call->crewed;
    uint32_t events = crewed->news & ~(1u << PV_CALL_DONE);
    int event = events ? __builtin_ctz(events) : PV_CALL_DONE;

    *number = event == PV_CALL_DONE || event == PV_CALL_UNMET ? crewed->error
              : event == PV_CALL_NOTE_MAIN_EXITED             ? crewed->status
                                                              : (int)(crewed->by_number >> event & 1);
    if (event == PV_CALL_NOTE_SIGNAL) {
        *number = __builtin_ctzll(crewed->signals) + 1;
        crewed->signals &= crewed->signals - 1;
        if (crewed->signals)
            return event;
    }
    crewed->news &= ~(1u << event);
    return event;
}

int pv_crew_next(struct pv_crew *crew, struct pv_crew_news *news)
{
    struct pv_call *call;
    uint64_t ignored;

    pthread_mutex_lock(&all.lock);
    call = crew->first;
    if (!call && read(crew->fd, &ignored, sizeof ignored) < 0)
        (void)ignored; /* EAGAIN: it was not written to yet */
    if (call) {
        news->call = call->crewed.number;
        news->event = lowest(call, &news->number);
        if (!call->crewed.news)
            take_off(call);
    }
    pthread_mutex_unlock(&all.lock);
    return call != NULL;
}

void pv_crew_forget(struct pv_call *call)
{
    bool is_untold;

    pthread_mutex_lock(&all.lock);
    while (call->crewed.is_running)
        pthread_cond_wait(&all.ended, &all.lock);
    is_untold = call->crewed.news & 1u << PV_CALL_UNMET;
    if (call->crewed.is_listed)
        take_off(call);
    pthread_mutex_unlock(&all.lock);
    for (int i = 0; is_untold && i < PV_CALL_STREAMS; i++)
        if (call->crewed.fds[i] >= 0)
            close(call->crewed.fds[i]);
}

struct pv_crew *pv_crew_new(void)
{
    struct pv_crew *crew = calloc(1, sizeof *crew);

    if (!crew)
        return NULL;
    crew->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (crew->fd < 0) {
        free(crew);
        return NULL;
    }
    crew->users = 1;
    crew->last = &crew->first;
    return crew;
}

int pv_crew_fd(const struct pv_crew *crew)
{
    return crew->fd;
}

void pv_crew_free(struct pv_crew *crew)
{
    pthread_mutex_lock(&all.lock);
    leave(crew);
    pthread_mutex_unlock(&all.lock);
}
