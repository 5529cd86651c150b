/* The rules of ring.c. */
#include "rules.h"

static void broken(int64_t code)
{
    uint8_t *span;

    HOLDS(code == PV_BROKEN);
    HOLDS(pv_ring_ready(ring) == PV_BROKEN && pv_ring_room(ring) == PV_BROKEN);
    HOLDS(pv_ring_readable(ring, &span) == PV_BROKEN && pv_ring_writable(ring, &span) == PV_BROKEN);
    HOLDS(page->srv_live == PV_LIVE_CLOSED && notified == 1);
    page->left.prod = page->right.cons = 0; /* good again: too late */
    HOLDS(pv_ring_ready(ring) == PV_BROKEN && pv_ring_room(ring) == PV_BROKEN);
}

static void more_than_fits_breaks(void)
{
    server();
    page->left.prod = SIZE;
    HOLDS(pv_ring_ready(ring) == SIZE);
    page->left.prod = SIZE + 1;
    broken(pv_ring_ready(ring));
}

static void bytes_taken_back_break(void)
{
    server();
    page->left.prod = 10;
    HOLDS(pv_ring_ready(ring) == 10);
    page->left.prod = 9;
    broken(pv_ring_ready(ring));
}

static void reading_the_unwritten_breaks(void)
{
    server();
    pv_ring_produce(ring, 10);
    page->right.cons = 10;
    HOLDS(pv_ring_room(ring) == SIZE);
    notified = 0;
    page->right.cons = 11;
    broken(pv_ring_room(ring));
}

static void reading_taken_back_breaks(void)
{
    server();
    pv_ring_produce(ring, 10);
    page->right.cons = 10;
    HOLDS(pv_ring_room(ring) == SIZE);
    notified = 0;
    page->right.cons = 9;
    broken(pv_ring_room(ring));
}

static void spans_stay_inside_the_ring(void)
{
    uint8_t *span;

    near_overflow(10);
    page->left.prod = 90; /* 100 bytes over the wrap and over the overflow */
    HOLDS(pv_ring_ready(ring) == 100);
    HOLDS(pv_ring_readable(ring, &span) == 10 && span == left + SIZE - 10);
    pv_ring_consume(ring, 10);
    HOLDS(page->left.cons == 0);
    HOLDS(pv_ring_readable(ring, &span) == 90 && span == left);
    HOLDS(pv_ring_room(ring) == SIZE);
    HOLDS(pv_ring_writable(ring, &span) == 10 && span == right + SIZE - 10);
    pv_ring_produce(ring, 10);
    HOLDS(page->right.prod == 0);
    HOLDS(pv_ring_writable(ring, &span) == SIZE - 10 && span == right);
}

static void a_full_ring_has_no_room(void)
{
    server();
    pv_ring_produce(ring, SIZE - 1);
    HOLDS(pv_ring_room(ring) == 1);
    pv_ring_produce(ring, 1);
    HOLDS(pv_ring_room(ring) == PV_WOULD_BLOCK);
    page->right.cons = 1;
    HOLDS(pv_ring_room(ring) == 1);
}

static void indices_of_our_own_are_never_read_back(void)
{
    server();
    page->left.prod = 10;
    pv_ring_produce(ring, 3);
    page->left.cons = page->right.prod = 77;
    HOLDS(pv_ring_ready(ring) == 10 && pv_ring_room(ring) == SIZE - 3);
    pv_ring_consume(ring, 4);
    pv_ring_produce(ring, 4);
    HOLDS(page->left.cons == 4 && page->right.prod == 7);
}

static void geometry_is_never_read_again(void)
{
    uint8_t *span;

    server();
    page->left_order = page->right_order = 30;
    HOLDS(pv_ring_room(ring) == SIZE && pv_ring_writable(ring, &span) == SIZE);
    page->left.prod = SIZE + 1;
    HOLDS(pv_ring_ready(ring) == PV_BROKEN);
}

static void the_end_comes_after_the_last_byte_and_is_final(void)
{
    server();
    page->left.prod = 10;
    page->cli_live = PV_LIVE_CLOSED;
    HOLDS(pv_ring_room(ring) == PV_CLOSED);
    HOLDS(pv_ring_ready(ring) == 10);
    page->left.prod = 20; /* after the close: does not count */
    HOLDS(pv_ring_ready(ring) == 10);
    pv_ring_consume(ring, 10);
    HOLDS(pv_ring_ready(ring) == PV_CLOSED);
    page->cli_live = PV_LIVE_OPEN; /* back to life: does not count */
    HOLDS(pv_ring_ready(ring) == PV_CLOSED);
}

static void an_absent_client_has_not_closed(void)
{
    server();
    page->cli_live = PV_LIVE_ABSENT;
    HOLDS(pv_ring_ready(ring) == PV_WOULD_BLOCK && pv_ring_room(ring) == SIZE);
}

static void a_death_is_told_from_a_close(void)
{
    server();
    page->left.prod = 10;
    pv_ring_peer_gone(ring);
    HOLDS(pv_ring_room(ring) == PV_DIED);
    HOLDS(pv_ring_ready(ring) == 10);
    pv_ring_consume(ring, 10);
    HOLDS(pv_ring_ready(ring) == PV_DIED);
    server();
    page->cli_live = PV_LIVE_CLOSED;
    pv_ring_peer_gone(ring);
    HOLDS(pv_ring_ready(ring) == PV_CLOSED);
}

static void only_who_asked_is_woken_and_once(void)
{
    server();
    pv_ring_produce(ring, 1);
    HOLDS(notified == 0);
    page->srv_notify = PV_NOTIFY_WRITE | PV_NOTIFY_READ;
    pv_ring_produce(ring, 1);
    HOLDS(notified == 1 && page->srv_notify == PV_NOTIFY_READ);
    pv_ring_produce(ring, 1);
    HOLDS(notified == 1);
    page->left.prod = 1;
    HOLDS(pv_ring_ready(ring) == 1);
    pv_ring_consume(ring, 1);
    HOLDS(notified == 2 && page->srv_notify == 0);
}

static void room_is_announced_when_half_is_free(void)
{
    server();
    page->left.prod = SIZE;
    HOLDS(pv_ring_ready(ring) == SIZE);
    page->srv_notify = PV_NOTIFY_READ;
    pv_ring_consume(ring, SIZE / 2 - 1);
    HOLDS(notified == 0);
    pv_ring_consume(ring, 1);
    HOLDS(notified == 1);
}

static void a_withheld_announcement_is_made_before_we_sleep(void)
{
    server();
    page->left.prod = SIZE;
    HOLDS(pv_ring_ready(ring) == SIZE);
    page->srv_notify = PV_NOTIFY_READ;
    pv_ring_consume(ring, 1);
    HOLDS(notified == 0);
    pv_ring_arm(ring, PV_NOTIFY_READ); /* as before a sleep for room of our own */
    HOLDS(notified == 1 && page->srv_notify == 0);
    page->srv_notify = PV_NOTIFY_READ;
    pv_ring_arm(ring, PV_NOTIFY_READ);
    HOLDS(notified == 1); /* nothing new was read */
}

static void the_first_failure_is_the_one_that_counts(void)
{
    server();
    HOLDS(pv_ring_fail(ring, PV_FLOODED) == PV_FLOODED);
    HOLDS(pv_ring_fail(ring, PV_BROKEN) == PV_FLOODED && pv_ring_ready(ring) == PV_FLOODED);
}

static void a_close_is_told_once_and_ends_writing_alone(void)
{
    server();
    page->left.prod = 10;
    pv_ring_close(ring);
    HOLDS(notified == 1 && page->srv_live == PV_LIVE_CLOSED);
    pv_ring_close(ring);
    HOLDS(notified == 1);
    HOLDS(pv_ring_room(ring) == PV_CLOSED && pv_ring_ready(ring) == 10);
}

static void a_client_announces_itself_and_asks(void)
{
    memset(&shared, 0, sizeof shared);
    pv_page_init(page, ORDER, ORDER);
    HOLDS(page->cli_live == PV_LIVE_ABSENT && page->srv_live == PV_LIVE_OPEN);
    HOLDS(page->cli_notify == PV_NOTIFY_WRITE && page->srv_notify == 0);
    HOLDS(page->left_order == ORDER && page->right_order == ORDER);
    notified = 0;
    pv_ring_attach(ring, page, ORDER, ORDER, left, right, 0, count_notify, NULL);
    HOLDS(page->cli_live == PV_LIVE_OPEN && page->srv_notify == PV_NOTIFY_WRITE && notified == 1);
    page->right.prod = 5; /* the client reads right and writes left */
    HOLDS(pv_ring_ready(ring) == 5);
    pv_ring_consume(ring, 5);
    pv_ring_produce(ring, 7);
    HOLDS(page->right.cons == 5 && page->left.prod == 7 && ring->out.data == left);
}

static void rings_inside_the_page_stand_where_the_library_has_them(void)
{
    memset(&shared, 0, sizeof shared);
    pv_ring_attach(ring, page, 10, 11, NULL, NULL, 1, count_notify, NULL);
    HOLDS(ring->in.data == shared.bytes + 1024 && ring->in.size == 1024);
    HOLDS(ring->out.data == shared.bytes + 2048 && ring->out.size == 2048);
}

static void orders_are_those_that_the_library_can_have(void)
{
    for (unsigned one = 0; one < 40; one++)
        for (unsigned two = 0; two < 40; two++) {
            bool range = one >= 10 && one <= 20 && two >= 10 && two <= 20;
            bool twice = one == two && one < 12; /* one place of each size in the page */
            /* 256 grants of four bytes, behind 24 bytes of head, would reach into offset 1024. */
            bool overlap = (one == 10 && two == 20) || (one == 20 && two == 10);

            HOLDS(pv_orders_valid(one, two) == (range && !twice && !overlap));
        }
    HOLDS(pv_layout_size(10, 11) == 4096 && pv_layout_size(12, 11) == 8192);
    HOLDS(pv_layout_size(20, 16) == 4096 + (1u << 20) + (1u << 16));
}

static const struct rule rules[] = {
    RULE(more_than_fits_breaks),
    RULE(bytes_taken_back_break),
    RULE(reading_the_unwritten_breaks),
    RULE(reading_taken_back_breaks),
    RULE(spans_stay_inside_the_ring),
    RULE(a_full_ring_has_no_room),
    RULE(indices_of_our_own_are_never_read_back),
    RULE(geometry_is_never_read_again),
    RULE(the_end_comes_after_the_last_byte_and_is_final),
    RULE(an_absent_client_has_not_closed),
    RULE(a_death_is_told_from_a_close),
    RULE(only_who_asked_is_woken_and_once),
    RULE(room_is_announced_when_half_is_free),
    RULE(a_withheld_announcement_is_made_before_we_sleep),
    RULE(the_first_failure_is_the_one_that_counts),
    RULE(a_close_is_told_once_and_ends_writing_alone),
    RULE(a_client_announces_itself_and_asks),
    RULE(rings_inside_the_page_stand_where_the_library_has_them),
    RULE(orders_are_those_that_the_library_can_have),
};

int main(void)
{
    return try_all(rules, sizeof rules / sizeof *rules);
}
