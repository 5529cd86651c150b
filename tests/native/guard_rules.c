/*
 * The rules of xen_guard.c, round by round. The test supplies xenstore and the hypervisor, and calls
 * each round itself instead of starting the guard's thread.
 */
#include "xen_guard.c"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "rules.h"

enum { GUEST = 7, PEER = 3, OTHER_PEER = 4 };

struct xen_functions xen;

static int store;       /* its address is a handle */
static unsigned opens;  /* tries to open it */
static unsigned asks;   /* questions */
static unsigned closes; /* of a connection that was open */
static int open_error;  /* 0: it can be opened */
static int read_error;  /* 0: it answers */
static unsigned broken_peer; /* the only peer that it does not answer about */
static bool is_shown[8];
static bool has_calls;

static void *open_store(unsigned long flags)
{
    (void)flags;
    opens++;
    errno = open_error;
    return open_error ? NULL : &store;
}

static void close_store(void *handle)
{
    HOLDS(handle == &store);
    closes++;
}

static void *read_store(void *handle, uint32_t transaction, const char *path, unsigned *length)
{
    unsigned peer;

    (void)transaction, (void)length;
    HOLDS(handle == &store && sscanf(path, "/local/domain/%u/", &peer) == 1);
    asks++;
    errno = read_error ? read_error : peer == broken_peer ? ENOMEM : ENOENT;
    return read_error || peer == broken_peer || !is_shown[peer] ? NULL : strdup("");
}

/* As libxencall says why, to whoever is given it. */
static void complain(struct xen_logger *logger, const char *format, ...)
{
    va_list values;

    va_start(values, format);
    logger->message(logger, 5, EPERM, "xencall", format, values);
    va_end(values);
}

static void *open_hypercalls(void *logger, unsigned flags)
{
    (void)flags;
    HOLDS(logger); /* without one, it would write to stderr each time */
    if (!has_calls)
        complain(logger, "Could not obtain handle on %s", "privileged command interface");
    return has_calls ? &has_calls : NULL;
}

static void *buffer(void *handle, size_t size)
{
    static struct evtchn_status status;

    HOLDS(handle == &has_calls && size == sizeof status);
    return &status;
}

static int says_closed(void *handle, unsigned number, uint64_t operation, uint64_t argument)
{
    (void)handle, (void)number, (void)operation;
    ((struct evtchn_status *)(uintptr_t)argument)->status = 0;
    return 0;
}

static struct xen_channel channels[2];
static struct libxenvchan vchan;
static struct link link_;

static void guarded(struct xen_channel *own, unsigned domain, unsigned peer)
{
    *own = (struct xen_channel){.domain = domain, .peer = peer, .vchan = &vchan};
    own->guard_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    own->next_guarded = guards.first;
    guards.first = own;
    is_shown[peer] = true;
}

/* One channel of a live guest, which the guard has not looked at yet. */
static void guest(void)
{
    xen.xs_open = open_store;
    xen.xs_close = close_store;
    xen.xs_read = read_store;
    xen.xencall_open = open_hypercalls;
    xen.xencall_alloc_buffer = buffer;
    xen.xencall2 = says_closed;
    if (guards.news >= 0)
        close(guards.news);
    guards.news = eventfd(0, EFD_NONBLOCK);
    guards.blind = 0;
    guards.first = NULL;
    guards.calls = NULL;
    guards.status = NULL;
    link_ = (struct link){0};
    opens = asks = closes = 0;
    open_error = read_error = 0;
    broken_peer = 0;
    has_calls = false;
    memset(is_shown, 0, sizeof is_shown);
    guarded(&channels[0], GUEST, PEER);
}

static bool is_released(const struct xen_channel *own)
{
    return own->guard_fd < 0;
}

static unsigned news(void)
{
    uint64_t count = 0;

    return read(guards.news, &count, sizeof count) == sizeof count ? (unsigned)count : 0;
}

static void rounds(unsigned count)
{
    while (count--)
        look_round(&link_);
}

static void a_peer_that_is_gone_is_noticed(void)
{
    guest();
    rounds(2);
    HOLDS(!is_released(&channels[0]) && opens == 1 && asks == 2);
    is_shown[PEER] = false;
    rounds(1);
    HOLDS(is_released(&channels[0]) && news() == 0);
}

static void a_stranger_that_never_showed_itself_is_left_alone(void)
{
    guest();
    is_shown[PEER] = false;
    rounds(3);
    HOLDS(!is_released(&channels[0]));
}

static void a_peer_that_was_seen_before_may_be_gone_at_the_first_look(void)
{
    guest();
    channels[0].peer_seen = true; /* as xen.c noted when the channel was made */
    is_shown[PEER] = false;
    rounds(1);
    HOLDS(is_released(&channels[0]));
}

static void a_store_that_cannot_be_opened_is_tried_again_in_longer_pauses(void)
{
    /* After the first try, rounds are passed over: 1, then 2, and so on up to PAUSE_MAX. */
    guest();
    open_error = ECONNREFUSED;
    rounds(1);
    HOLDS(opens == 1);
    for (unsigned pause = 1; pause < PAUSE_MAX; pause *= 2) {
        unsigned before = opens;

        rounds(pause);
        HOLDS(opens == before);
        rounds(1);
        HOLDS(opens == before + 1);
    }
    opens = 0;
    rounds(10 * (PAUSE_MAX + 1));
    HOLDS(opens == 10 && asks == 0 && !is_released(&channels[0]));
    is_shown[PEER] = false;
    channels[0].peer_seen = true;
    open_error = 0;
    rounds(PAUSE_MAX + 1);
    HOLDS(is_released(&channels[0]));
}

static void a_connection_that_breaks_is_opened_again(void)
{
    guest();
    rounds(1);
    read_error = EIO;
    rounds(1);
    HOLDS(closes == 1 && opens == 1 && !is_released(&channels[0]));
    is_shown[PEER] = false;
    read_error = 0;
    rounds(2);
    HOLDS(opens == 2 && is_released(&channels[0]));
}

static void an_answer_makes_the_pause_short_again(void)
{
    guest();
    open_error = ECONNREFUSED;
    rounds(1 + 2 + 3 + 5); /* four tries */
    HOLDS(opens == 4);
    open_error = 0;
    rounds(9);
    HOLDS(opens == 5 && asks == 1);
    read_error = EPIPE;
    rounds(1);
    read_error = 0;
    rounds(2);
    HOLDS(opens == 6 && asks == 3);
}

static void that_nothing_is_seen_is_said_once_and_that_it_is_again(void)
{
    guest();
    open_error = ECONNREFUSED;
    rounds(100);
    HOLDS(news() == 1 && pv_xen_guard_blind() == ECONNREFUSED);
    open_error = 0;
    rounds(2 * PAUSE_MAX);
    HOLDS(news() == 1 && pv_xen_guard_blind() == 0);
    rounds(10);
    HOLDS(news() == 0);
}

static void one_question_without_an_answer_costs_the_others_nothing(void)
{
    guest();
    guarded(&channels[1], GUEST, OTHER_PEER); /* it is asked about first */
    broken_peer = OTHER_PEER;
    rounds(2);
    HOLDS(opens == 1 && closes == 0 && news() == 0);
    is_shown[PEER] = false;
    rounds(1);
    HOLDS(is_released(&channels[0]) && !is_released(&channels[1]));
}

static void a_guest_does_not_ask_the_hypervisor(void)
{
    guest();
    has_calls = true;
    rounds(2);
    HOLDS(!is_released(&channels[0]) && asks == 2);
}

static void dom0_asks_the_hypervisor_as_soon_as_it_can(void)
{
    guest();
    guards.first = NULL;
    guarded(&channels[0], 0, PEER);
    rounds(1);
    HOLDS(!is_released(&channels[0]) && asks == 1); /* xenstore answers instead */
    has_calls = true;
    rounds(1);
    HOLDS(is_released(&channels[0]) && asks == 1);
}

int main(void)
{
    static const struct rule rules[] = {
        RULE(a_peer_that_is_gone_is_noticed),
        RULE(a_stranger_that_never_showed_itself_is_left_alone),
        RULE(a_peer_that_was_seen_before_may_be_gone_at_the_first_look),
        RULE(a_store_that_cannot_be_opened_is_tried_again_in_longer_pauses),
        RULE(a_connection_that_breaks_is_opened_again),
        RULE(an_answer_makes_the_pause_short_again),
        RULE(that_nothing_is_seen_is_said_once_and_that_it_is_again),
        RULE(one_question_without_an_answer_costs_the_others_nothing),
        RULE(a_guest_does_not_ask_the_hypervisor),
        RULE(dom0_asks_the_hypervisor_as_soon_as_it_can),
    };

    return try_all(rules, sizeof rules / sizeof *rules);
}
