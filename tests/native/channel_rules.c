/* The rules of channel.c. The test supplies the clock and sched_yield(). */
#include "rules.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int clear_event(struct pv_channel *which)
{
    uint64_t count;

    return read(which->event_fd, &count, sizeof count) == sizeof count;
}

static void a_send_wraps_and_stops_at_the_room(void)
{
    static uint8_t bytes[2 * SIZE];

    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    near_overflow(10);
    HOLDS(pv_channel_send(&channel, bytes, 100) == 100);
    HOLDS(!memcmp(right + SIZE - 10, bytes, 10) && !memcmp(right, bytes + 10, 90));
    HOLDS(pv_channel_send(&channel, bytes, sizeof bytes) == SIZE - 100);
    HOLDS(pv_channel_send(&channel, bytes, 1) == PV_WOULD_BLOCK);
    HOLDS(page->cli_notify & PV_NOTIFY_READ);
    HOLDS(right[SIZE - 10] == 0 && page->right.prod == SIZE - 10);
}

static void a_peek_gives_no_more_than_was_asked_for(void)
{
    uint8_t *span;

    server();
    page->left.prod = 100;
    page->cli_notify = 0;
    HOLDS(pv_channel_peek(&channel, 30, &span) == 30 && span == left);
    HOLDS(page->cli_notify == 0); /* not armed: there were bytes */
    HOLDS(pv_channel_peek(&channel, 300, &span) == 100);
    pv_channel_consume(&channel, 100);
    HOLDS(pv_channel_peek(&channel, 30, &span) == PV_WOULD_BLOCK);
    HOLDS(page->cli_notify == PV_NOTIFY_WRITE);
}

static bool readable(int fd)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};

    return poll(&waiting, 1, 0) == 1;
}

static void wake_up(bool with_news)
{
    const uint64_t one = 1;

    page->left.prod += with_news;
    HOLDS(write(channel.event_fd, &one, sizeof one) == sizeof one);
    pv_channel_collect(&channel);
}

static void watched_server(int live_fd)
{
    server();
    channel.event_fd = eventfd(0, EFD_NONBLOCK);
    channel.clear = clear_event;
    HOLDS(channel.event_fd >= 0 && pv_channel_watch(&channel, live_fd) == 0);
}

static void keep(struct pv_channel *which)
{
    close(which->event_fd);
}

static void unwatch(void)
{
    channel.live_fd = -1; /* the test closes the live socket itself */
    channel.detach = keep;
    pv_channel_free(&channel);
}

static void a_collected_event_does_not_wake_again(void)
{
    watched_server(-1);
    wake_up(false);
    HOLDS(!readable(channel.wait_fd));
    unwatch();
}

static void a_hang_up_is_a_death_and_wakes_once(void)
{
    int live[2];

    HOLDS(socketpair(AF_UNIX, SOCK_STREAM, 0, live) == 0);
    watched_server(live[0]);
    HOLDS(write(live[1], "x", 1) == 1 && !readable(channel.wait_fd)); /* bytes are not an end */
    close(live[1]);
    HOLDS(readable(channel.wait_fd));
    pv_channel_collect(&channel);
    HOLDS(pv_ring_ready(ring) == PV_DIED && !readable(channel.wait_fd));
    close(live[0]);
    unwatch();
}

static void a_flood_of_events_breaks(void)
{
    watched_server(-1);
    for (unsigned i = 0; i < 4 * PV_IDLE_WAKES && pv_ring_ready(ring) != PV_FLOODED; i++)
        wake_up(false);
    HOLDS(pv_ring_ready(ring) == PV_FLOODED && pv_ring_room(ring) == PV_FLOODED);
    HOLDS(pv_channel_failure(&channel) == PV_FLOODED);
    HOLDS(page->srv_live == PV_LIVE_CLOSED && notified == 1);
    unwatch();
}

static void events_with_news_are_no_flood(void)
{
    watched_server(-1);
    for (unsigned i = 0; i < 4 * PV_IDLE_WAKES; i++) {
        wake_up(true);
        HOLDS(pv_ring_ready(ring) == 1);
        pv_ring_consume(ring, 1);
        if (i % 2)
            wake_up(false); /* an event after its bytes were read; the next with bytes excuses it */
    }
    HOLDS(pv_ring_ready(ring) == PV_WOULD_BLOCK);
    unwatch();
}

/* ---- turns ---- */

static char taken[SIZE];
static int64_t sent;

static int64_t turn(const char *out, size_t count, size_t max)
{
    sent = -99;
    return pv_channel_turn(&channel, (const uint8_t *)out, count, &sent, taken, max);
}

static void a_turn_writes_takes_what_came_and_arms(void)
{
    near_overflow(0);
    memcpy(left + SIZE - 3, "abc", 3);
    memcpy(left, "de", 2);
    page->left.cons = page->left.prod = SIZE - 3;
    ring->in.own = ring->in.peer = SIZE - 3;
    page->left.prod += 5;
    page->cli_notify = 0;
    HOLDS(turn("xyz", 3, sizeof taken) == 5 && sent == 3);
    HOLDS(!memcmp(taken, "abcde", 5) && page->left.cons == SIZE + 2);
    HOLDS(!memcmp(right, "xyz", 3));
    HOLDS(page->cli_notify == PV_NOTIFY_WRITE && pv_channel_is_armed(&channel));
    HOLDS(turn(NULL, 0, sizeof taken) == PV_WOULD_BLOCK && sent == 0);
    HOLDS(pv_channel_is_armed(&channel));
}

static void a_turn_that_takes_all_it_may_leaves_the_rest_and_does_not_arm(void)
{
    server();
    page->left.prod = 100;
    page->cli_notify = PV_NOTIFY_WRITE;
    HOLDS(turn(NULL, 0, 60) == 60 && page->left.cons == 60);
    HOLDS(page->cli_notify == 0 && !pv_channel_is_armed(&channel));
    HOLDS(turn(NULL, 0, 60) == 40 && pv_channel_is_armed(&channel));
    page->left.prod += 100;
    HOLDS(turn(NULL, 0, 60) == 60 && !pv_channel_is_armed(&channel));
}

static void an_end_behind_the_bytes_of_a_turn_needs_another_turn(void)
{
    server();
    page->left.prod = 10;
    page->cli_live = PV_LIVE_CLOSED;
    HOLDS(turn(NULL, 0, 60) == 10 && !pv_channel_is_armed(&channel));
    HOLDS(turn(NULL, 0, 60) == PV_CLOSED && !pv_channel_is_armed(&channel));
}

static void a_turn_tells_how_much_it_could_not_write(void)
{
    static char bytes[2 * SIZE];

    server();
    HOLDS(turn(bytes, sizeof bytes, 10) == PV_WOULD_BLOCK && sent == SIZE);
    HOLDS(turn(bytes, 1, 10) == PV_WOULD_BLOCK && sent == PV_WOULD_BLOCK);
    HOLDS(page->cli_notify & PV_NOTIFY_READ); /* and stays so when only bytes are not asked for */
    HOLDS(turn(NULL, 0, 10) == PV_WOULD_BLOCK && page->cli_notify & PV_NOTIFY_READ);
    pv_ring_close(ring);
    HOLDS(turn(bytes, 1, 10) == PV_WOULD_BLOCK && sent == PV_CLOSED);
}

/* ---- halt polling: the test supplies the clock and sched_yield() ---- */

static int64_t now, yield_takes, answer_at = INT64_MAX; /* ns */
static unsigned yields;
static uint32_t answer;

static void pass(int64_t time)
{
    now += time;
    if (now >= answer_at) {
        page->left.prod += answer;
        answer_at = INT64_MAX;
    }
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    (void)clock;
    pass(1000);
    *time = (struct timespec){now / 1000000000, now % 1000000000};
    return 0;
}

int sched_yield(void)
{
    yields++;
    pass(yield_takes);
    return 0;
}

/* A turn that writes one byte, which the peer answers this much later. */
static bool answered(int64_t later)
{
    int64_t got;

    answer = 1;
    answer_at = now + later;
    page->right.cons = page->right.prod; /* there is always room */
    got = turn("x", 1, 10);
    answer_at = INT64_MAX;
    return got == 1;
}

static void polling(int mode)
{
    server();
    channel.poll.budget_ns = PV_POLL_NS;
    channel.poll.skip = channel.poll.failures = 0;
    yields = 0;
    yield_takes = 20000;
    channel.poll.mode = mode;
}

static void without_polling_nobody_waits(void)
{
    int64_t before = now;

    polling(PV_POLL_OFF);
    HOLDS(!answered(1000) && yields == 0 && now == before);
}

static void one_yield_is_enough_for_an_answer_on_one_processor(void)
{
    polling(PV_POLL_YIELD);
    HOLDS(answered(15000) && yields == 1);
    HOLDS(!answered(50000) && yields == 2);
}

static void a_spin_ends_with_the_answer_or_after_its_time(void)
{
    int64_t before;

    polling(PV_POLL_SPIN);
    HOLDS(answered(PV_POLL_NS / 2) && yields == 0);
    before = now;
    HOLDS(!answered(2 * PV_POLL_NS));
    HOLDS(now - before >= PV_POLL_NS && now - before < 2 * PV_POLL_NS);
}

static int64_t spun(void)
{
    int64_t before = now;

    channel.poll.skip = 0;
    HOLDS(!answered(INT64_MAX - now));
    return now - before;
}

static void a_turn_spins_no_longer_than_others_can_wait(void)
{
    struct pv_channel other = {.ring = channel.ring, .event_fd = eventfd(0, 0), .detach = keep};

    watched_server(-1);
    channel.poll.mode = PV_POLL_SPIN;
    channel.poll.budget_ns = PV_POLL_DOMAIN_NS;
    HOLDS(spun() >= PV_POLL_DOMAIN_NS);
    HOLDS(pv_channel_watch(&other, -1) == 0);
    HOLDS(spun() < 2 * PV_POLL_NS);
    pv_channel_free(&other);
    HOLDS(spun() >= PV_POLL_DOMAIN_NS);
    channel.poll.answer_ns = PV_POLL_DOMAIN_NS;
    pv_channel_share_loop(1);
    HOLDS(spun() < 2 * PV_POLL_NS);
    pv_channel_share_loop(0);
    HOLDS(spun() >= PV_POLL_MAX_NS);
    unwatch();
}

/* The answer comes this much later, even after the turn; returns how long the next turn spins. */
static int64_t spun_after(int64_t later)
{
    int64_t got, end = now + later;

    channel.poll.skip = 0;
    if (!answered(later)) {
        answer_at = end;
        pass(end - now);
        got = turn("", 0, 10);
        HOLDS(got == 1);
    }
    return spun();
}

static void a_turn_spins_longer_where_answers_have_taken_longer(void)
{
    watched_server(-1);
    channel.poll.mode = PV_POLL_SPIN;
    channel.poll.budget_ns = PV_POLL_DOMAIN_NS;
    HOLDS(spun_after(PV_POLL_DOMAIN_NS / 16) < 2 * PV_POLL_DOMAIN_NS);
    HOLDS(spun_after(PV_POLL_DOMAIN_NS / 2) >= 4 * PV_POLL_DOMAIN_NS);
    HOLDS(spun_after(PV_POLL_DOMAIN_NS / 2) < 8 * PV_POLL_DOMAIN_NS);
    HOLDS(spun_after(PV_POLL_MAX_NS) >= PV_POLL_MAX_NS);
    HOLDS(spun_after(PV_POLL_MAX_NS) < 2 * PV_POLL_MAX_NS);
    HOLDS(spun_after(PV_POLL_MAX_NS + PV_POLL_DOMAIN_NS) < 2 * PV_POLL_DOMAIN_NS);
    channel.poll.skip = 0;
    HOLDS(answered(PV_POLL_DOMAIN_NS / 16));
    pass(3 * PV_POLL_DOMAIN_NS);
    page->left.prod += 1; /* a byte that answers no question */
    HOLDS(turn("", 0, 10) == 1 && spun() < 2 * PV_POLL_DOMAIN_NS);
    channel.poll.budget_ns = PV_POLL_NS; /* a channel whose peer is in this system */
    channel.poll.asked_ns = channel.poll.answer_ns = 0;
    HOLDS(spun_after(3 * PV_POLL_NS) < 2 * PV_POLL_NS);
    unwatch();
}

/* How many turns it takes until the next one polls again. */
static unsigned turns_until_polled(int64_t later)
{
    unsigned turns = 0, before = yields;

    do {
        answered(later);
        turns++;
    } while (yields == before && turns < 10000);
    return turns;
}

static void what_does_not_pay_is_tried_ever_less_and_at_once_again_when_it_pays(void)
{
    unsigned longest = 0;

    polling(PV_POLL_YIELD);
    HOLDS(turns_until_polled(50000) == 1);
    HOLDS(turns_until_polled(50000) == 3); /* two turns did not poll */
    HOLDS(turns_until_polled(50000) == 5);
    for (int i = 0; i < 12; i++)
        longest = turns_until_polled(50000);
    HOLDS(longest == 1025);
    HOLDS(turns_until_polled(15000) == 1025); /* the polling turn got an answer */
    HOLDS(turns_until_polled(15000) == 1);
    HOLDS(turns_until_polled(50000) == 1);
    HOLDS(turns_until_polled(50000) == 3);
}

static void after_a_yield_that_others_took_it_is_long_not_tried_though_the_answer_came(void)
{
    polling(PV_POLL_YIELD);
    yield_takes = 2 * PV_POLL_YIELD_NS;
    HOLDS(turns_until_polled(1000) == 1);
    yield_takes = 20000;
    HOLDS(turns_until_polled(15000) == 1025);
    HOLDS(turns_until_polled(15000) == 1); /* after one success it polls each turn again */
}

static void who_said_nothing_expects_nothing(void)
{
    polling(PV_POLL_YIELD);
    HOLDS(turn(NULL, 0, 10) == PV_WOULD_BLOCK && yields == 0);
    page->right.prod = ring->out.own = SIZE; /* a peer that does not read */
    HOLDS(turn("x", 1, 10) == PV_WOULD_BLOCK && sent == PV_WOULD_BLOCK && yields == 0);
    page->left.prod = 1;
    HOLDS(turn("x", 1, 10) == 1 && yields == 0);
    polling(PV_POLL_YIELD);
    page->left.prod = 1; /* it is there already */
    HOLDS(turn("x", 1, 10) == 1 && yields == 0);
}

static void a_polling_turn_sees_an_end(void)
{
    polling(PV_POLL_SPIN);
    page->cli_live = PV_LIVE_CLOSED;
    HOLDS(turn("x", 1, 10) == PV_CLOSED);
    polling(PV_POLL_SPIN);
    page->left.prod = 2 * SIZE;
    HOLDS(turn("x", 1, 10) == PV_BROKEN && !pv_channel_is_armed(&channel));
}

/* ---- another thread waits for the events ---- */

static void a_muted_channel_tells_of_a_death_alone(void)
{
    const uint64_t one = 1;
    int live[2];

    HOLDS(socketpair(AF_UNIX, SOCK_STREAM, 0, live) == 0);
    watched_server(live[0]);
    HOLDS(pv_channel_event_fd(&channel) == channel.event_fd);
    HOLDS(pv_channel_mute(&channel, 1) == 0);
    HOLDS(write(channel.event_fd, &one, sizeof one) == sizeof one);
    HOLDS(!readable(channel.wait_fd) && readable(channel.event_fd));
    HOLDS(pv_channel_mute(&channel, 0) == 0 && readable(channel.wait_fd)); /* it was kept */
    HOLDS(pv_channel_mute(&channel, 1) == 0 && !readable(channel.wait_fd));
    close(live[1]);
    HOLDS(readable(channel.wait_fd));
    pv_channel_collect(&channel);
    HOLDS(pv_ring_ready(ring) == PV_DIED && readable(channel.event_fd));
    pv_channel_woken(&channel);
    HOLDS(!readable(channel.event_fd));
    close(live[0]);
    unwatch();
    HOLDS(pv_channel_mute(&channel, 1) < 0); /* the descriptor is closed */
}

static void a_flood_is_one_whoever_waits_for_the_events(void)
{
    const uint64_t one = 1;

    watched_server(-1);
    for (unsigned i = 0; i < 4 * PV_IDLE_WAKES && pv_ring_ready(ring) != PV_FLOODED; i++) {
        HOLDS(write(channel.event_fd, &one, sizeof one) == sizeof one);
        pv_channel_woken(&channel);
    }
    HOLDS(turn("x", 1, 10) == PV_FLOODED && sent == PV_FLOODED);
    unwatch();
}

static const struct rule rules[] = {
    RULE(a_send_wraps_and_stops_at_the_room),
    RULE(a_peek_gives_no_more_than_was_asked_for),
    RULE(a_hang_up_is_a_death_and_wakes_once),
    RULE(a_collected_event_does_not_wake_again),
    RULE(a_flood_of_events_breaks),
    RULE(events_with_news_are_no_flood),
    RULE(a_turn_writes_takes_what_came_and_arms),
    RULE(a_turn_that_takes_all_it_may_leaves_the_rest_and_does_not_arm),
    RULE(an_end_behind_the_bytes_of_a_turn_needs_another_turn),
    RULE(a_turn_tells_how_much_it_could_not_write),
    RULE(without_polling_nobody_waits),
    RULE(one_yield_is_enough_for_an_answer_on_one_processor),
    RULE(a_spin_ends_with_the_answer_or_after_its_time),
    RULE(a_turn_spins_no_longer_than_others_can_wait),
    RULE(a_turn_spins_longer_where_answers_have_taken_longer),
    RULE(what_does_not_pay_is_tried_ever_less_and_at_once_again_when_it_pays),
    RULE(after_a_yield_that_others_took_it_is_long_not_tried_though_the_answer_came),
    RULE(who_said_nothing_expects_nothing),
    RULE(a_polling_turn_sees_an_end),
    RULE(a_muted_channel_tells_of_a_death_alone),
    RULE(a_flood_is_one_whoever_waits_for_the_events),
};

int main(void)
{
    return try_all(rules, sizeof rules / sizeof *rules);
}
