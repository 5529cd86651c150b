/*
 * Debian's unmodified libxenvchan at one end of a channel, our ring at the other, in two threads
 * over the stand-in Xen of standin.c:
 *
 *   interop orders ROUNDS SEED PATIENCE   every pair of ring orders, both roles, every way of using
 *                                         the library; ROUNDS times over, with several rings' worth
 *   interop churn ROUNDS SEED PATIENCE    ROUNDS short channels, everything drawn at random, closed
 *                                         with data in flight
 *   interop ends ROUNDS SEED PATIENCE     a few bytes and at once the close, against a reader that
 *                                         never sleeps and so hits the writer between two steps
 *   interop crossed ROUNDS SEED PATIENCE  both ends do one thing at a time: theirs writes a little
 *                                         more than the ring holds before it reads; ours takes that
 *                                         little out, then writes more than the other ring holds
 *
 * Every byte must arrive, in order, and then the end. A wait of PATIENCE milliseconds is a stall: it
 * fails the run. On success one line of JSON says what was done.
 *
 * Known faults of the library that a user must work round, so their thread does, and counts:
 *  - Its reader looks for bytes first and for the close afterwards, so bytes that were written just
 *    before the close are not reported: read() says -1 while data_ready() still has some. The bytes
 *    are there, and a second read() gets them ("early_ends").
 *  - recv(n) says -1 at the close when fewer than n bytes are left, which read() gets as well
 *    ("short_packets").
 *  - init leaves `blocking` as malloc() left it: it is set at once.
 */
#include <libxenvchan.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Both sides' definitions of the page exist; ours is renamed, its layout is asserted in ring.h. */
#define vchan_interface pv_vchan_interface
#include "attach.h"
#undef vchan_interface
#include "standin.h"

#define PERIOD 65521u      /* prime, so that no ring size divides it */
#define LONGEST (1u << 20) /* of one read or write; no ring is larger */
#define PATH "/local/domain/7/data/vchan/3"

enum { SERVER = 7, CLIENT = 3 };
enum use { STREAM, BLOCKING, PACKETS, USES };

struct plan {
    uint32_t round;
    enum use use;                          /* how the library is used */
    bool we_serve, we_close;               /* who does so */
    bool abrupt;                           /* the closer does not wait for the other's bytes */
    bool crossed;                          /* one thing at a time; use is BLOCKING */
    bool awake;                            /* neither end sleeps; use is STREAM */
    unsigned left, right;                  /* orders that are asked for */
    uint32_t to_them, to_us;               /* bytes */
    uint32_t our_piece, their_piece, seed; /* pieces: most bytes of one call */
};

static uint8_t pattern[PERIOD + LONGEST];
static struct plan plan;
static bool finished, crowded; /* crowded: the two threads share a processor */
static cpu_set_t allowed; /* processors, as the program found them */
static pthread_barrier_t meeting;
static struct {
    uint64_t bytes[2]; /* to them, to us */
    uint64_t early_ends, early_bytes, short_packets;
    bool pairs[2][PV_ORDER_MAX + 1][PV_ORDER_MAX + 1];
} seen;

static void die(const char *what, int64_t detail)
{
    fprintf(stderr,
            "interop: %s (%lld) in round %u: use %d, we %s and %s, %s, orders %u %u, bytes to them %u, "
            "to us %u, pieces %u %u, seed %u\n",
            what, (long long)detail, plan.round, plan.use, plan.we_serve ? "serve" : "connect",
            plan.we_close ? "close" : "wait for the close", plan.abrupt ? "abrupt" : "complete",
            plan.left, plan.right, plan.to_them, plan.to_us, plan.our_piece, plan.their_piece,
            plan.seed);
    exit(1);
}

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Up to most, small numbers as likely as large ones. */
static uint32_t some(uint32_t *seed, uint32_t most)
{
    uint32_t bits = 1 + next(seed) % 20;

    return 1 + next(seed) % (most < 1u << bits ? most : 1u << bits);
}

/* What stands at that place of a direction's stream, with LONGEST bytes after it. */
static const uint8_t *expected(bool to_us, uint32_t at)
{
    return pattern + (plan.round * 977u + (to_us ? 31337u : 0) + at) % PERIOD;
}

static void check(const void *bytes, bool to_us, uint32_t at, uint32_t count)
{
    if (at + count > (to_us ? plan.to_us : plan.to_them))
        die("more bytes than were sent", at + count);
    if (memcmp(bytes, expected(to_us, at), count) != 0)
        die(to_us ? "wrong bytes came to us" : "wrong bytes came to them", at);
}

static uint32_t piece(uint32_t *seed, uint32_t most, uint32_t left)
{
    uint32_t size = 1 + next(seed) % most;

    return size < left ? size : left;
}

/* The two threads on a processor each, if there are two; only "ends" wants this. */
static void take_processor(int which)
{
    cpu_set_t mine;

    CPU_ZERO(&mine);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && which-- == 0)
            CPU_SET(cpu, &mine);
    if (CPU_COUNT(&mine))
        pthread_setaffinity_np(pthread_self(), sizeof mine, &mine);
}

/* Instead of a sleep in "ends". */
static void idle(void)
{
    if (crowded)
        sched_yield();
}

/* ---- our end ---- */

static void our_wait(struct pv_channel *channel)
{
    if (plan.awake) {
        idle();
        return;
    }
    if (standin_wait(pv_channel_wait_fd(channel)) < 0)
        die("we stall", 0);
    pv_channel_collect(channel);
}

static struct pv_channel *our_open(void)
{
    struct pv_channel *channel = plan.we_serve ? attach_server(CLIENT, PATH, plan.left, plan.right)
                                               : attach_client(SERVER, PATH);
    struct pv_ring *ring;

    if (!channel)
        die("we cannot open", 0);
    ring = &channel->ring;
    for (unsigned left = PV_ORDER_MIN; left <= PV_ORDER_MAX; left++)
        for (unsigned right = PV_ORDER_MIN; right <= PV_ORDER_MAX; right++)
            if ((plan.we_serve ? ring->in.size : ring->out.size) == 1u << left &&
                (plan.we_serve ? ring->out.size : ring->in.size) == 1u << right)
                seen.pairs[plan.we_serve][left][right] = true;
    return channel;
}

/* Sends and receives until both are done, or the end if the library is to close. */
static void our_transfer(struct pv_channel *channel)
{
    uint32_t sent = 0, received = 0, seed = plan.seed + 1;
    bool can_send = true;

    for (;;) {
        bool moved = false;
        uint8_t *span;
        int64_t count;

        if (plan.we_close && sent == plan.to_them && (plan.abrupt || received == plan.to_us))
            break;
        count = pv_channel_peek(channel, 1 + next(&seed) % plan.our_piece, &span);
        if (count == PV_CLOSED) {
            if (plan.we_close)
                die("they closed first", received);
            if (received != plan.to_us)
                die("bytes to us are lost", (int64_t)plan.to_us - received);
            break;
        }
        if (count > 0) {
            check(span, true, received, (uint32_t)count);
            pv_channel_consume(channel, (uint32_t)count);
            received += (uint32_t)count;
            moved = true;
        } else if (count != PV_WOULD_BLOCK) {
            die("our receive fails", count);
        }
        if (can_send && sent < plan.to_them) {
            count = pv_channel_send(channel, expected(false, sent),
                                    piece(&seed, plan.our_piece, plan.to_them - sent));
            if (count > 0) {
                sent += (uint32_t)count;
                moved = true;
            } else if (count == PV_CLOSED) {
                can_send = false;
                moved = true;
            } else if (count != PV_WOULD_BLOCK) {
                die("our send fails", count);
            }
        }
        if (!moved)
            our_wait(channel);
    }
    seen.bytes[0] += sent;
    /* A server that goes before its client came takes the rendezvous away under it. */
    while (plan.we_serve && plan.we_close && !attach_client_came(channel))
        our_wait(channel);
}

/*
 * Ours in "crossed". A ring that wakes the writer only when it is half empty must not forget the
 * wake-up when its reader turns to something else.
 */
static void our_cross(struct pv_channel *channel)
{
    struct pv_ring *ring = &channel->ring;
    uint32_t first = plan.to_us - ring->in.size, sent = 0, received = 0;
    uint8_t *span;
    int64_t count;

    /* They asked to hear of our first bytes; from now on nothing but room can wake them. */
    sent = 1;
    if (pv_channel_send(channel, expected(false, 0), sent) != sent)
        die("our first byte does not fit", 0);
    while (pv_ring_ready(ring) < ring->in.size || !standin_asleep())
        sched_yield();
    while (received < plan.to_us) {
        bool writing = received && sent < plan.to_them;

        if (writing)
            count = pv_channel_send(channel, expected(false, sent), plan.to_them - sent);
        else
            count = pv_channel_peek(channel, received ? LONGEST : first, &span);
        if (count == PV_WOULD_BLOCK) {
            our_wait(channel);
        } else if (count < 0) {
            die("our end fails", count);
        } else if (writing) {
            sent += (uint32_t)count;
        } else {
            check(span, true, received, (uint32_t)count);
            pv_channel_consume(channel, (uint32_t)count);
            received += (uint32_t)count;
        }
    }
    seen.bytes[0] += sent;
}

/* ---- their end ---- */

static struct libxenvchan *their_open(void)
{
    struct libxenvchan *chan =
        plan.we_serve ? libxenvchan_client_init(NULL, SERVER, PATH)
                      : libxenvchan_server_init(NULL, CLIENT, PATH, (size_t)1 << plan.left,
                                                (size_t)1 << plan.right);

    if (!chan)
        die("the library cannot open", 0);
    chan->blocking = plan.use != STREAM;
    return chan;
}

static void their_wait(struct libxenvchan *chan)
{
    if (plan.awake) {
        idle();
        return;
    }
    if (standin_wait(libxenvchan_fd_for_select(chan)) < 0)
        die("the library stalls", 0);
    if (libxenvchan_wait(chan) < 0)
        die("the library's wait fails", 0);
}

/* A call of the library said -1: because of the close, or because our stand-in lost patience? */
static void must_be_closed(struct libxenvchan *chan)
{
    if (libxenvchan_is_open(chan))
        die("the library stalls or fails while the channel is open", 0);
}

/* One read or recv; false at the end. Also collects what the library leaves behind there. */
static bool their_read(struct libxenvchan *chan, uint8_t *buffer, uint32_t size, uint32_t *received,
                       bool *moved)
{
    int count = plan.use == PACKETS ? libxenvchan_recv(chan, buffer, size)
                                    : libxenvchan_read(chan, buffer, size);

    if (count > 0) {
        check(buffer, false, *received, (uint32_t)count);
        *received += (uint32_t)count;
        *moved = true;
    }
    if (count >= 0)
        return true;
    must_be_closed(chan);
    count = libxenvchan_data_ready(chan);
    if (plan.use == PACKETS && count > 0)
        seen.short_packets++;
    else if (count > 0)
        seen.early_ends++;
    while (libxenvchan_data_ready(chan) > 0) {
        count = libxenvchan_read(chan, buffer, LONGEST);
        if (count <= 0)
            die("the library does not give what it has", count);
        check(buffer, false, *received, (uint32_t)count);
        *received += (uint32_t)count;
        if (plan.use != PACKETS)
            seen.early_bytes += (uint32_t)count;
    }
    return false;
}

/* Non-blocking, both ways at once. */
static void their_stream(struct libxenvchan *chan, uint8_t *buffer)
{
    uint32_t sent = 0, received = 0, seed = plan.seed + 2;
    bool can_send = true;

    for (;;) {
        bool moved = false;

        if (!plan.we_close && sent == plan.to_us && (plan.abrupt || received == plan.to_them))
            break;
        if (!their_read(chan, buffer, 1 + next(&seed) % plan.their_piece, &received, &moved)) {
            if (!plan.we_close)
                die("we closed first", received);
            if (received != plan.to_them)
                die("bytes to them are lost", (int64_t)plan.to_them - received);
            break;
        }
        if (can_send && sent < plan.to_us) {
            int count = libxenvchan_write(chan, expected(true, sent),
                                          piece(&seed, plan.their_piece, plan.to_us - sent));

            if (count < 0) {
                must_be_closed(chan);
                can_send = false;
                moved = true; /* reading on shows whether the close is in its place */
            } else {
                sent += (uint32_t)count;
                moved |= count > 0;
            }
        }
        if (!moved)
            their_wait(chan);
    }
    seen.bytes[1] += sent;
}

/* Blocking calls: first everything out, then everything in. Our end does both at all times. */
static void their_sequence(struct libxenvchan *chan, uint8_t *buffer)
{
    uint32_t sent = 0, received = 0, seed = plan.seed + 2, size = plan.their_piece;
    bool open = true, moved;

    while (open && sent < plan.to_us) {
        const uint8_t *bytes = expected(true, sent);
        int count;

        if (plan.use == PACKETS)
            count = libxenvchan_send(chan, bytes,
                                     size < plan.to_us - sent ? size : plan.to_us - sent);
        else
            count = libxenvchan_write(chan, bytes, piece(&seed, size, plan.to_us - sent));
        if (count < 0) {
            must_be_closed(chan);
            if (!(plan.we_close && plan.abrupt))
                die("the library's write fails", count);
            open = false;
        } else {
            sent += (uint32_t)count;
        }
    }
    seen.bytes[1] += sent;
    for (;;) {
        uint32_t left = plan.to_them - received, most = size;

        if (!plan.we_close && (plan.abrupt || !left))
            break;
        if (plan.use == BLOCKING)
            most = 1 + next(&seed) % size;
        else if (!plan.we_close && left < size)
            most = left; /* no end closes before we have these; more would never come */
        if (!their_read(chan, buffer, most, &received, &moved)) {
            if (received != plan.to_them)
                die("bytes to them are lost", (int64_t)plan.to_them - received);
            break;
        }
    }
}

static void *them(void *arg)
{
    uint8_t *buffer = malloc(LONGEST);

    if (*(const bool *)arg)
        take_processor(1);
    if (!buffer)
        die("no memory", 0);
    for (;;) {
        struct libxenvchan *chan = NULL;

        pthread_barrier_wait(&meeting); /* the plan stands */
        if (finished)
            break;
        standin_domain = plan.we_serve ? CLIENT : SERVER;
        if (!plan.we_serve)
            chan = their_open();
        pthread_barrier_wait(&meeting); /* the server is there */
        if (plan.we_serve)
            chan = their_open();
        if (plan.use == STREAM)
            their_stream(chan, buffer);
        else
            their_sequence(chan, buffer);
        while (!plan.we_serve && !plan.we_close && libxenvchan_is_open(chan) == 2)
            their_wait(chan);
        libxenvchan_close(chan);
        pthread_barrier_wait(&meeting); /* both are gone */
    }
    free(buffer);
    return NULL;
}

/* ---- rounds ---- */

static void play(void)
{
    struct pv_channel *channel = NULL;

    pthread_barrier_wait(&meeting);
    standin_domain = plan.we_serve ? SERVER : CLIENT;
    if (plan.we_serve)
        channel = our_open();
    pthread_barrier_wait(&meeting);
    if (!plan.we_serve)
        channel = our_open();
    if (plan.crossed)
        our_cross(channel);
    else
        our_transfer(channel);
    pv_channel_free(channel);
    pthread_barrier_wait(&meeting);
    if (standin_in_use())
        die("not given back", standin_in_use());
    plan.round++;
}

/* The library's recv and send take no more than fits the ring; what it made is at least this. */
static void fit_packets(void)
{
    unsigned smaller = plan.left < plan.right ? plan.left : plan.right;

    if (plan.use == PACKETS && plan.their_piece > 1u << smaller)
        plan.their_piece = 1u << smaller;
}

static void play_orders(uint32_t *seed)
{
    for (unsigned left = PV_ORDER_MIN; left <= PV_ORDER_MAX; left++)
        for (unsigned right = PV_ORDER_MIN; right <= PV_ORDER_MAX; right++)
            for (int kind = 0; kind < 2 * USES; kind++) {
                plan.use = (enum use)(kind / 2);
                plan.we_serve = kind % 2;
                if (plan.we_serve && !pv_orders_valid(left, right))
                    continue; /* the library as a server makes the nearest that is possible */
                plan.we_close = next(seed) % 2;
                plan.abrupt = false;
                plan.left = left;
                plan.right = right;
                plan.seed = next(seed);
                plan.to_them = (2u << (plan.we_serve ? right : left)) + next(seed) % 5000;
                plan.to_us = (2u << (plan.we_serve ? left : right)) + next(seed) % 5000;
                plan.our_piece = 1 + (1u << (left > right ? left : right)) / (1 + next(seed) % 8);
                plan.their_piece = 1 + (1u << (left > right ? left : right)) / (1 + next(seed) % 8);
                if (plan.our_piece > LONGEST)
                    plan.our_piece = LONGEST;
                if (plan.their_piece > LONGEST)
                    plan.their_piece = LONGEST;
                fit_packets();
                play();
            }
}

static void play_end(uint32_t *seed)
{
    plan.use = STREAM;
    plan.we_serve = next(seed) % 2;
    plan.we_close = next(seed) % 2;
    plan.abrupt = plan.awake = true;
    plan.left = PV_ORDER_MIN + next(seed) % 2;
    plan.right = PV_ORDER_MIN + PV_ORDER_INPAGE - plan.left;
    plan.seed = next(seed);
    plan.our_piece = plan.their_piece = 64;
    plan.to_them = plan.we_close ? 1 + next(seed) % 500 : 0;
    plan.to_us = plan.we_close ? 0 : 1 + next(seed) % 500;
    play();
}

static void play_cross(uint32_t *seed)
{
    plan.use = BLOCKING;
    plan.we_serve = next(seed) % 2;
    plan.we_close = plan.crossed = true;
    plan.abrupt = false;
    plan.left = plan.right = PV_ORDER_PAGES;
    plan.seed = next(seed);
    plan.our_piece = plan.their_piece = LONGEST - 1;
    plan.to_us = (1u << PV_ORDER_PAGES) + 1 + next(seed) % 1000;
    plan.to_them = (1u << PV_ORDER_PAGES) + 1 + next(seed) % 1000;
    play();
}

static void play_churn(uint32_t *seed)
{
    do {
        plan.left = PV_ORDER_MIN + next(seed) % (PV_ORDER_MAX - PV_ORDER_MIN + 1);
        plan.right = PV_ORDER_MIN + next(seed) % (PV_ORDER_MAX - PV_ORDER_MIN + 1);
    } while (!pv_orders_valid(plan.left, plan.right));
    plan.use = (enum use)(next(seed) % USES);
    plan.we_serve = next(seed) % 2;
    plan.we_close = next(seed) % 2;
    plan.abrupt = next(seed) % 2;
    plan.seed = next(seed);
    plan.our_piece = some(seed, 8192);
    plan.their_piece = some(seed, 8192);
    /* A few dozen calls: small pieces do not make long rounds. */
    plan.to_them = next(seed) % (16 * plan.our_piece + 1);
    plan.to_us = next(seed) % (16 * plan.their_piece + 1);
    fit_packets();
    play();
}

static const struct job {
    const char *name;
    void (*play)(uint32_t *seed);
    bool spread;
} jobs[] = {
    {"orders", play_orders, false},
    {"churn", play_churn, false},
    {"ends", play_end, true},
    {"crossed", play_cross, false},
};

int main(int argc, char **argv)
{
    uint32_t rounds, seed, pairs[2] = {0, 0};
    const struct job *job = NULL;
    pthread_t thread;

    for (size_t i = 0; argc == 5 && i < sizeof jobs / sizeof *jobs; i++)
        if (!strcmp(argv[1], jobs[i].name))
            job = &jobs[i];
    if (!job) {
        fprintf(stderr, "usage: interop orders|churn|ends|crossed ROUNDS SEED PATIENCE\n");
        return 2;
    }
    rounds = (uint32_t)strtoul(argv[2], NULL, 10);
    seed = (uint32_t)strtoul(argv[3], NULL, 10);
    standin_patience = atoi(argv[4]);
    sched_getaffinity(0, sizeof allowed, &allowed);
    crowded = CPU_COUNT(&allowed) < 2;
    for (uint32_t i = 0, noise = 1; i < PERIOD; i++)
        pattern[i] = (uint8_t)next(&noise);
    for (uint32_t i = PERIOD; i < sizeof pattern; i++)
        pattern[i] = pattern[i - PERIOD];
    if (pthread_barrier_init(&meeting, NULL, 2) || pthread_create(&thread, NULL, them, (void *)&job->spread))
        die("no thread", 0);
    if (job->spread)
        take_processor(0);
    for (uint32_t round = 0; round < rounds; round++)
        job->play(&seed);
    finished = true;
    pthread_barrier_wait(&meeting);
    pthread_join(thread, NULL);
    for (int role = 0; role < 2; role++)
        for (unsigned left = PV_ORDER_MIN; left <= PV_ORDER_MAX; left++)
            for (unsigned right = PV_ORDER_MIN; right <= PV_ORDER_MAX; right++)
                pairs[role] += seen.pairs[role][left][right];
    printf("{\"channels\": %u, \"bytes\": %llu, \"order_pairs_as_client\": %u, "
           "\"order_pairs_as_server\": %u, \"early_ends\": %llu, \"early_bytes\": %llu, "
           "\"short_packets\": %llu, \"longest_wait_ms\": %.1f}\n",
           plan.round, (unsigned long long)(seen.bytes[0] + seen.bytes[1]), pairs[0], pairs[1],
           (unsigned long long)seen.early_ends, (unsigned long long)seen.early_bytes,
           (unsigned long long)seen.short_packets, (double)standin_longest_wait() / 1e6);
    return 0;
}
