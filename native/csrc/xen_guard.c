#include "xen_guard.h"
#include "own_thread.h"
#include "xen.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/*
 * The guard: one thread for all channels. dom0 asks the hypervisor whether both ends of the event
 * channel exist. Linux lets no other domain ask (privcmd blocks the hypercall), so a guest looks
 * for the peer's presence in xenstore (see xen_presence.c). A peer with other software has none;
 * then only the page shows its end, as with the library. Whether a peer has one is known before it
 * is guarded, so that a death is noticed however late the first look comes. dom0 outlives all
 * others.
 */
static struct {
    pthread_mutex_t lock;
    struct xen_channel *first;
    bool running;                 /* the thread, which resets it before it ends */
    int blind;                    /* see pv_xen_guard_blind() */
    int news;                     /* and pv_xen_guard_news() */
    void *calls;                  /* the handle of libxencall, once it was opened */
    struct evtchn_status *status; /* memory that the hypervisor may write to */
} guards = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = -1};

/* The thread's connection to xenstore, which is opened on demand and may fail at any time. */
struct link {
    void *store;    /* NULL: none */
    unsigned skip;  /* rounds until the next attempt */
    unsigned pause; /* rounds between the last two attempts; 0: it has answered since */
};

#define PAUSE_MAX (PV_XEN_REOPEN_MS_MAX / PV_XEN_LIVENESS_MS)

/*
 * libxencall says at each attempt that it may not open privcmd. Dom0's agent may not, and need not:
 * it looks in xenstore then, as a guest does. What matters is said elsewhere (say_blind).
 */
static void drop_message(struct xen_logger *self, int level, int error, const char *context,
                         const char *format, va_list values)
{
    (void)self, (void)level, (void)error, (void)context, (void)format, (void)values;
}

static void drop_progress(struct xen_logger *self, const char *context, const char *what,
                          int percent, unsigned long done, unsigned long total)
{
    (void)self, (void)context, (void)what, (void)percent, (void)done, (void)total;
}

static void keep_logger(struct xen_logger *self)
{
    (void)self;
}

static struct xen_logger silent = {drop_message, drop_progress, keep_logger};

/* With the lock held: opened once and kept; repeated for as long as it fails. */
static void open_calls(void)
{
    if (!guards.calls)
        guards.calls = xen.xencall_open(&silent, 0);
    if (guards.calls && !guards.status)
        guards.status = xen.xencall_alloc_buffer(guards.calls, sizeof *guards.status);
}

/* With the lock held. */
static enum sight ask_hypervisor(const struct xen_channel *own)
{
    struct evtchn_status *status;

    if (own->peer == 0)
        return THERE;
    if (own->domain != 0)
        return UNKNOWN;
    open_calls();
    status = guards.status;
    if (!status)
        return UNKNOWN;
    *status = (struct evtchn_status){.domain = DOMAIN_SELF, .port = own->vchan->event_port};
    if (xen.xencall2(guards.calls, HYPERCALL_EVENT_CHANNEL, EVENT_CHANNEL_STATUS,
                     (uint64_t)(uintptr_t)status) < 0)
        return UNKNOWN;
    return status->status == STATUS_INTERDOMAIN && status->remote.domain == own->peer ? THERE : GONE;
}

/*
 * With the lock held. A channel belongs to another thread; this touches only its fd, whose other
 * end the channel watches, and fields that never change after attaching.
 */
static void release(struct xen_channel *own)
{
    close(own->guard_fd);
    own->guard_fd = -1;
}

/* With the lock held: a channel that only xenstore can answer for, and whose peer was not asked
 * yet. */
static struct xen_channel *first_unsure(void)
{
    for (struct xen_channel *own = guards.first; own; own = own->next_guarded)
        if (own->guard_fd >= 0 && own->unsure)
            return own;
    return NULL;
}

/* With the lock held: xenstore's answer about a peer holds for all channels with it. */
static void apply(unsigned domain, unsigned peer, enum sight sight)
{
    for (struct xen_channel *own = guards.first; own; own = own->next_guarded) {
        if (own->guard_fd < 0 || own->domain != domain || own->peer != peer)
            continue;
        own->unsure = false;
        if (sight == GONE && own->peer_seen)
            release(own);
        else
            own->peer_seen |= sight == THERE;
    }
}

/* With the lock held: reports, once, that deaths are not noticed, or that they are again. */
static void say_blind(int error)
{
    const uint64_t one = 1;
    ssize_t ignored;

    if ((guards.blind != 0) != (error != 0)) {
        guards.blind = error;
        ignored = write(guards.news, &one, sizeof one);
        (void)ignored; /* EAGAIN: readable already */
    }
}

/* Without the lock: the connection has failed; the next attempt comes later. */
static void lose(struct link *link, int error)
{
    if (link->store)
        xen.xs_close(link->store);
    link->store = NULL;
    link->pause = link->pause ? 2 * link->pause : 1;
    if (link->pause > PAUSE_MAX)
        link->pause = PAUSE_MAX;
    link->skip = link->pause;
    pthread_mutex_lock(&guards.lock);
    say_blind(error ? error : EIO);
    pthread_mutex_unlock(&guards.lock);
}

/* Without the lock, once per round that needs xenstore: whether it can be asked. */
static bool is_linked(struct link *link)
{
    if (link->store)
        return true;
    if (link->skip > 0) {
        link->skip--;
        return false;
    }
    link->store = xen.xs_open(0);
    if (!link->store)
        lose(link, errno);
    return link->store != NULL;
}

/* Without the lock: asks xenstore about all channels that are unsure. */
static void ask_store(struct link *link)
{
    struct xen_channel *own;
    bool answered = false;
    int error = 0;

    pthread_mutex_lock(&guards.lock);
    while ((own = first_unsure()) != NULL) {
        unsigned domain = own->domain, peer = own->peer; /* own may be freed while we ask */
        enum sight sight;

        pthread_mutex_unlock(&guards.lock);
        sight = xen_see_presence(link->store, NO_TRANSACTION, domain, peer);
        if (sight == UNKNOWN)
            error = errno ? errno : EIO;
        else
            answered = true;
        pthread_mutex_lock(&guards.lock);
        apply(domain, peer, sight);
    }
    if (answered) {
        link->pause = 0;
        say_blind(0);
    }
    pthread_mutex_unlock(&guards.lock);
    if (error && !answered)
        lose(link, error);
}

/* Without the lock. */
static void look_round(struct link *link)
{
    bool is_unsure = false;

    pthread_mutex_lock(&guards.lock);
    for (struct xen_channel *own = guards.first; own; own = own->next_guarded) {
        enum sight sight = own->guard_fd < 0 ? THERE : ask_hypervisor(own);

        if (sight == GONE)
            release(own);
        own->unsure = sight == UNKNOWN;
        is_unsure |= own->unsure;
    }
    pthread_mutex_unlock(&guards.lock);
    if (is_unsure && is_linked(link))
        ask_store(link);
}

/* Whether there is a channel to watch; if not, the thread ends, and the next guard starts one. */
static bool goes_on(void)
{
    bool on;

    pthread_mutex_lock(&guards.lock);
    on = guards.running = guards.first != NULL;
    pthread_mutex_unlock(&guards.lock);
    return on;
}

static void *keep_looking(void *unused)
{
    const struct timespec pause = {.tv_nsec = PV_XEN_LIVENESS_MS * 1000000L};
    struct link link = {0};

    (void)unused;
    while (goes_on()) {
        look_round(&link);
        nanosleep(&pause, NULL);
    }
    if (link.store)
        xen.xs_close(link.store);
    return NULL;
}

/* With the lock held; 0 or -errno. */
static int start_looking(void)
{
    int error;

    if (guards.running)
        return 0;
    if (guards.news < 0)
        guards.news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (guards.news < 0)
        return -errno;
    error = pv_own_thread(keep_looking, NULL, 0);
    guards.running = !error;
    return error;
}

int pv_xen_guard(struct pv_channel *channel, int fd)
{
    struct xen_channel *own = (struct xen_channel *)channel;
    int error;

    pthread_mutex_lock(&guards.lock);
    own->guard_fd = fd;
    own->next_guarded = guards.first;
    own->guarded = true;
    guards.first = own;
    error = start_looking();
    if (!error && ask_hypervisor(own) == GONE)
        release(own);
    pthread_mutex_unlock(&guards.lock);
    return error;
}

void xen_unguard(struct xen_channel *own)
{
    pthread_mutex_lock(&guards.lock);
    for (struct xen_channel **link = &guards.first; own->guarded && *link;
         link = &(*link)->next_guarded)
        if (*link == own) {
            *link = own->next_guarded;
            break;
        }
    own->guarded = false;
    if (own->guard_fd >= 0)
        close(own->guard_fd);
    own->guard_fd = -1;
    pthread_mutex_unlock(&guards.lock);
}

int pv_xen_guard_blind(void)
{
    int blind;

    pthread_mutex_lock(&guards.lock);
    blind = guards.blind;
    pthread_mutex_unlock(&guards.lock);
    return blind;
}

int pv_xen_guard_news(void)
{
    return guards.news;
}
