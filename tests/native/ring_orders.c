/*
 * Checks that each acquire and release in ring.c is strong enough by itself, on any processor that
 * C11 allows. This file compiles the ring's code with its atomics mapped onto a model in which memory
 * has a history. Exits with 0, or prints the choices after which a thread reads stale bytes.
 *
 * The model. Every place keeps all values that were ever stored. A thread has a view: for each place
 * the oldest value that it may still see. A load may return any value from there on, and moves the
 * view. A release store keeps the thread's view with the value; an acquire load of it takes that view
 * over. Nothing else carries knowledge from one thread to the other; fences are left out on purpose,
 * so that none of them hides a missing order (tests/interleave/ takes the fences one by one).
 *
 * The two threads run one after the other: what the second may see of the first is then every state
 * that the first went through, and every choice of every load is tried.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t model_load(const volatile void *at, int order);
static void model_store(volatile void *at, uint32_t value, int order);
static uint32_t model_change(volatile void *at, uint32_t keep, uint32_t add, int order);

#define __atomic_load_n(at, order) model_load(at, order)
#define __atomic_store_n(at, value, order) model_store(at, value, order)
#define __atomic_fetch_or(at, bits, order) model_change(at, ~0u, bits, order)
#define __atomic_fetch_and(at, bits, order) model_change(at, bits, 0, order)
#define __atomic_thread_fence(order) ((void)(order))
#include "ring.c"

#define ORDER PV_ORDER_PAGES
#define SIZE (1u << ORDER)
#define PIECE 100u
#define PIECES 3u
#define HISTORY 16u
#define LOADS_MAX 64u

/* A place for each offset of the page's head, and one for the rings' own bytes: written, or read. */
enum { BYTES = 24, PLACES };

struct value {
    uint32_t value;
    bool carries; /* stored with release: view is what its thread knew */
    unsigned view[PLACES];
};

static struct value history[PLACES][HISTORY];
static unsigned stored[PLACES];
static unsigned views[2][PLACES]; /* the first thread's, the second one's */
static int self;

static struct vchan_interface page;
static uint8_t left[SIZE], right[SIZE];
static struct pv_ring rings[2]; /* as the threads: 0 is the client */

/* The choices of the second thread's loads, counted through like the digits of a number. */
static struct {
    unsigned taken, of;
} choices[LOADS_MAX];
static unsigned loads;
static unsigned asked_for[PLACES]; /* how often each place was loaded */

static void die(const char *what)
{
    fprintf(stderr, "ring_orders: %s; choices:", what);
    for (unsigned i = 0; i < loads; i++)
        fprintf(stderr, " %u/%u", choices[i].taken + 1, choices[i].of);
    fprintf(stderr, "\n");
    exit(1);
}

static unsigned place_of(const volatile void *at)
{
    size_t offset = (size_t)((const volatile uint8_t *)at - (const uint8_t *)&page);

    if (offset >= BYTES)
        die("an access outside the page's head");
    return (unsigned)offset;
}

static void join(unsigned *view, const unsigned *other)
{
    for (int place = 0; place < PLACES; place++)
        if (view[place] < other[place])
            view[place] = other[place];
}

static uint32_t take(unsigned place, unsigned which, int order)
{
    const struct value *value = &history[place][which];

    views[self][place] = which;
    if (value->carries && (order == __ATOMIC_ACQUIRE || order == __ATOMIC_SEQ_CST))
        join(views[self], value->view);
    return value->value;
}

static uint32_t model_load(const volatile void *at, int order)
{
    unsigned place = place_of(at), oldest = views[self][place], which = stored[place] - 1;

    asked_for[place]++;
    if (self == 1) {
        if (loads == LOADS_MAX)
            die("too many loads");
        choices[loads].of = stored[place] - oldest;
        which = oldest + choices[loads++].taken;
    }
    return take(place, which, order);
}

static void keep(unsigned place, uint32_t value, int order)
{
    struct value *made = &history[place][stored[place]];

    if (stored[place] == HISTORY)
        die("too many stores");
    *made = (struct value){.value = value,
                           .carries = order == __ATOMIC_RELEASE || order == __ATOMIC_SEQ_CST};
    views[self][place] = stored[place]++;
    memcpy(made->view, views[self], sizeof made->view);
}

static void model_store(volatile void *at, uint32_t value, int order)
{
    keep(place_of(at), value, order);
}

/* A read-modify-write works on the newest value. */
static uint32_t model_change(volatile void *at, uint32_t mask, uint32_t add, int order)
{
    unsigned place = place_of(at);
    uint32_t value = take(place, stored[place] - 1, order);

    keep(place, (value & mask) | add, order);
    return value;
}

static void no_notify(void *arg)
{
    (void)arg;
}

/* Two open ends with the same count of bytes behind them, in left; nothing is stored yet. */
static void begin(uint32_t produced, uint32_t consumed)
{
    memset(stored, 0, sizeof stored);
    memset(views, 0, sizeof views);
    self = 0;
    for (unsigned place = 0; place < PLACES; place++)
        keep(place, 0, __ATOMIC_RELAXED);
    page = (struct vchan_interface){.left_order = ORDER, .right_order = ORDER};
    for (int end = 0; end < 2; end++)
        pv_ring_attach(&rings[end], &page, ORDER, ORDER, left, right, end, no_notify, NULL);
    model_store(&page.srv_live, PV_LIVE_OPEN, __ATOMIC_RELEASE);
    model_store(&page.left.prod, produced, __ATOMIC_RELEASE);
    model_store(&page.left.cons, consumed, __ATOMIC_RELEASE);
    memcpy(views[1], views[0], sizeof views[1]);
    for (unsigned place = 0; place < PLACES; place++)
        views[1][place] = stored[place] - 1; /* so far both know everything */
    rings[0].out.own = rings[1].in.peer = produced;
    rings[1].in.own = rings[0].out.peer = consumed;
}

/* Runs the second thread with every combination of its loads' values. */
static void in_every_way(void (*first)(void), void (*second)(void))
{
    unsigned digit;

    memset(choices, 0, sizeof choices);
    do {
        first();
        self = 1;
        loads = 0;
        second();
        for (digit = loads; digit > 0; digit--) {
            if (++choices[digit - 1].taken < choices[digit - 1].of)
                break;
            choices[digit - 1].taken = 0;
        }
        for (unsigned rest = digit; rest < LOADS_MAX; rest++)
            choices[rest].taken = 0;
    } while (digit);
}

/* How many pieces the second thread knows to be written (read) in the rings' bytes. */
static unsigned known(void)
{
    return views[1][BYTES];
}

/* ---- bytes before the index ---- */

static void client_writes(void)
{
    begin(0, 0);
    for (unsigned i = 0; i < PIECES; i++) {
        keep(BYTES, 0, __ATOMIC_RELAXED);
        pv_ring_produce(&rings[0], PIECE);
    }
}

static void server_looks_twice(void)
{
    for (int look = 0; look < 2; look++) {
        uint8_t *span;
        int64_t count = pv_ring_readable(&rings[1], &span);

        if (count > 0 && count > known() * PIECE)
            die("the index is there before its bytes");
        if (count < 0 && count != PV_WOULD_BLOCK)
            die("a correct peer counts as a bad one");
    }
}

/* ---- the last index before the live flag ---- */

static void client_writes_and_closes(void)
{
    client_writes();
    pv_ring_close(&rings[0]);
}

static void server_reads_to_the_end(void)
{
    uint32_t received = 0;

    for (int look = 0; look < 3; look++) {
        uint8_t *span;
        int64_t count = pv_ring_readable(&rings[1], &span);

        if (count == PV_CLOSED) {
            if (received != PIECES * PIECE)
                die("bytes are lost at the close");
            return;
        }
        if (count > 0) {
            pv_ring_consume(&rings[1], (uint32_t)count);
            received += (uint32_t)count;
        }
    }
}

/* ---- reading before the room ---- */

static void server_reads_a_full_ring(void)
{
    /* The first thread is the server's end here, and the second one is the client's, that writes. */
    begin(SIZE, 0);
    for (unsigned i = 0; i < PIECES; i++) {
        if (pv_ring_ready(&rings[1]) != SIZE - i * PIECE)
            die("the ring is not full");
        keep(BYTES, 0, __ATOMIC_RELAXED);
        pv_ring_consume(&rings[1], PIECE);
    }
}

static void client_looks_for_room_twice(void)
{
    for (int look = 0; look < 2; look++) {
        int64_t room = pv_ring_room(&rings[0]);

        if (room > 0 && room > known() * PIECE)
            die("the room is there before its bytes were read");
        if (room < 0 && room != PV_WOULD_BLOCK)
            die("a correct peer counts as a bad one");
    }
}

/* ---- one look is one load ---- */

/* The ring must use the value that it checked: a second load could return an unchecked one. */
static void no_place_is_loaded_twice_in_one_look(void)
{
    client_writes();
    for (int end = 0; end < 2; end++) {
        memset(asked_for, 0, sizeof asked_for);
        pv_ring_ready(&rings[end]);
        for (int place = 0; place < PLACES; place++)
            if (asked_for[place] > 1)
                die("a look for bytes loads a place twice");
        memset(asked_for, 0, sizeof asked_for);
        pv_ring_room(&rings[end]);
        for (int place = 0; place < PLACES; place++)
            if (asked_for[place] > 1)
                die("a look for room loads a place twice");
    }
}

int main(void)
{
    no_place_is_loaded_twice_in_one_look();
    in_every_way(client_writes, server_looks_twice);
    in_every_way(client_writes_and_closes, server_reads_to_the_end);
    in_every_way(server_reads_a_full_ring, client_looks_for_room_twice);
    return 0;
}
