#include "xen_internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/*
 * The guard: one thread for all channels. dom0 asks the hypervisor whether both ends of the event channel are there. Linux lets no other
 * domain ask (privcmd blocks the hypercall), so a guest looks for the peer's presence in xenstore (see
 * xen_presence.c). A peer that is not of ours has none; then its end shows in the page alone, as with
 * the library.
 */
static struct {
    pthread_mutex_t lock;
    struct xen_channel *first;
    bool running;
    void *calls;                  /* the handle of libxencall; opened once, kept. NULL: no use */
    struct evtchn_status *status; /* memory that the hypervisor may write to */
} guards = {.lock = PTHREAD_MUTEX_INITIALIZER};

enum sight { THERE, GONE, UNKNOWN };

/* With the lock held. */
static enum sight ask_hypervisor(const struct xen_channel *own)
{
    struct evtchn_status *status = guards.status;

    if (own->domain != 0 || !status)
        return UNKNOWN;
    *status = (struct evtchn_status){.domain = DOMAIN_SELF, .port = own->vchan->event_port};
    if (xen.xencall2(guards.calls, HYPERCALL_EVENT_CHANNEL, EVENT_CHANNEL_STATUS,
                     (uint64_t)(uintptr_t)status) < 0)
        return UNKNOWN;
    return status->status == STATUS_INTERDOMAIN && status->remote.domain == own->peer ? THERE : GONE;
}

/* Without the lock: this waits for xenstore. */
static enum sight ask_store(void *store, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];
    void *value;

    snprintf(path, sizeof path, "/local/domain/%u/data/vchan/%u", peer, domain);
    value = xen.xs_read(store, NO_TRANSACTION, path, NULL);
    free(value);
    if (value)
        return THERE;
    return errno == ENOENT || errno == EACCES ? GONE : UNKNOWN;
}

/*
 * With the lock held. A channel belongs to another thread; what is touched here is its fd, whose
 * other end it watches, and what never changes after attaching.
 */
static void let_go(struct xen_channel *own)
{
    close(own->guard_fd);
    own->guard_fd = -1;
}

/* With the lock held: a channel that only xenstore can tell of, and whose peer was not asked yet. */
static struct xen_channel *first_unsure(void)
{
    for (struct xen_channel *own = guards.first; own; own = own->next_guarded)
        if (own->guard_fd >= 0 && own->unsure)
            return own;
    return NULL;
}

/* With the lock held: what xenstore says of a peer goes for all channels with it. */
static void apply(unsigned domain, unsigned peer, enum sight sight)
{
    for (struct xen_channel *own = guards.first; own; own = own->next_guarded) {
        if (own->guard_fd < 0 || own->domain != domain || own->peer != peer)
            continue;
        own->unsure = false;
        if (sight == GONE && own->peer_seen)
            let_go(own);
        else
            own->peer_seen |= sight == THERE;
    }
}

/* With the lock held, which is released meanwhile. */
static void look_round(void *store)
{
    struct xen_channel *own;

    for (own = guards.first; own; own = own->next_guarded) {
        enum sight sight = own->guard_fd < 0 ? THERE : ask_hypervisor(own);

        if (sight == GONE)
            let_go(own);
        own->unsure = sight == UNKNOWN;
    }
    while (store && (own = first_unsure()) != NULL) {
        unsigned domain = own->domain, peer = own->peer; /* own may be freed while we ask */
        enum sight sight;

        pthread_mutex_unlock(&guards.lock);
        sight = ask_store(store, domain, peer);
        pthread_mutex_lock(&guards.lock);
        apply(domain, peer, sight);
    }
}

static void *keep_looking(void *unused)
{
    const struct timespec pause = {.tv_nsec = PV_XEN_LIVENESS_MS * 1000000L};
    void *store = xen.xs_open(0);

    (void)unused;
    pthread_mutex_lock(&guards.lock);
    while (guards.first) {
        look_round(store);
        pthread_mutex_unlock(&guards.lock);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&guards.lock);
    }
    guards.running = false;
    pthread_mutex_unlock(&guards.lock);
    if (store)
        xen.xs_close(store);
    return NULL;
}

/* With the lock held; 0 or -errno. */
static int start_looking(bool in_dom0)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int error;

    if (in_dom0 && !guards.calls)
        guards.calls = xen.xencall_open(NULL, 0);
    if (guards.calls && !guards.status)
        guards.status = xen.xencall_alloc_buffer(guards.calls, sizeof *guards.status);
    if (guards.running)
        return 0;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, keep_looking, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    guards.running = !error;
    return -error;
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
    error = start_looking(own->domain == 0);
    if (!error && ask_hypervisor(own) == GONE)
        let_go(own);
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
