/*
 * Two threads use the two ends of a channel, without Python: ring_soak JOB ROUNDS ORDER ORDER.
 * Every byte must arrive, in order, and then the end. A wait that only its time-out ends is a missed
 * wake-up. Exits with 0, or says what went wrong.
 *
 *   mixed   each round: a random number of bytes both ways in random pieces, then close
 *   close   each round: a few bytes and at once the close, against a reader that never sleeps
 *   ping    a reader that sleeps between single bytes, against a writer that does not
 *   fill    a writer that sleeps when the ring is full, against a reader that does not
 *
 * The last three aim at the few nanoseconds in which an order of two steps matters: one side is
 * always awake there, on a processor of its own if there is one, and waits for a random moment, so
 * that it hits the other between two steps.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "shm.h"

#define LONGEST_WAIT 2000 /* ms; a machine can be busy, but nothing here takes this long */
#define PIECE 4096
#define MOST (4 * PIECE)

struct end {
    struct pv_channel *channel;
    uint32_t seed, to_send, to_receive, sent, received;
    uint8_t out_key, in_key;
    int closes, sleeps, dawdles, spread;
};

static cpu_set_t allowed; /* processors, as the program found them */

static void die(const char *what, int64_t code)
{
    fprintf(stderr, "ring_soak: %s (%lld)\n", what, (long long)code);
    exit(1);
}

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void dawdle(struct end *end)
{
    for (uint32_t left = end->dawdles ? next(&end->seed) % 256 : 0; left; left--)
        __asm__ volatile("" ::: "memory");
}

/* Gives each of the two threads a processor; false if there is only one. */
static int spread(int which)
{
    cpu_set_t mine;
    int cpu, seen = 0;

    if (CPU_COUNT(&allowed) < 2)
        return 0;
    for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && seen++ == which)
            break;
    CPU_ZERO(&mine);
    CPU_SET(cpu, &mine);
    return pthread_setaffinity_np(pthread_self(), sizeof mine, &mine) == 0;
}

static void wait_for_news(struct end *end)
{
    struct pollfd fd = {.fd = pv_channel_wait_fd(end->channel), .events = POLLIN};

    if (!end->sleeps) {
        if (!end->spread)
            sched_yield();
        return;
    }
    if (poll(&fd, 1, LONGEST_WAIT) == 0)
        die("missed wake-up", 0);
    pv_channel_collect(end->channel);
}

/* Whether bytes came; *ended when the peer has closed and nothing is left. */
static int receive(struct end *end, int *ended)
{
    uint8_t *span;
    size_t most = 1 + next(&end->seed) % MOST;
    int64_t count = end->sleeps ? pv_channel_peek(end->channel, most, &span)
                                : pv_ring_readable(&end->channel->ring, &span);

    if (count == PV_WOULD_BLOCK)
        return 0;
    if (count == PV_CLOSED) {
        *ended = 1;
        return 0;
    }
    if (count < 0)
        die("receive", count);
    for (int64_t i = 0; i < count; i++)
        if (span[i] != (uint8_t)((end->received + i) * 31 + end->in_key))
            die("wrong byte", end->received + i);
    end->received += (uint32_t)count;
    dawdle(end);
    pv_channel_consume(end->channel, (uint32_t)count);
    return 1;
}

static int send_some(struct end *end, uint32_t size)
{
    uint8_t piece[PIECE];
    int64_t count;

    if (size > end->to_send - end->sent)
        size = end->to_send - end->sent;
    for (uint32_t i = 0; i < size; i++)
        piece[i] = (uint8_t)((end->sent + i) * 31 + end->out_key);
    dawdle(end);
    count = pv_channel_send(end->channel, piece, size);
    if (count == PV_WOULD_BLOCK)
        return 0;
    if (count < 0)
        die("send", count);
    end->sent += (uint32_t)count;
    return 1;
}

/* Sends and receives all; the end that closes does so at once, the other one waits for it. */
static void *mixed(void *arg)
{
    struct end *end = arg;
    int ended = 0;

    end->spread = spread(end->out_key - 1);
    for (;;) {
        int moved = receive(end, &ended);

        if (end->sent < end->to_send && !ended)
            moved |= send_some(end, 1 + next(&end->seed) % PIECE);
        if (ended || (end->closes && end->sent == end->to_send &&
                      end->received == end->to_receive))
            break;
        if (!moved)
            wait_for_news(end);
    }
    if (end->received != end->to_receive)
        die("bytes lost at close", (int64_t)end->to_receive - end->received);
    if (end->closes)
        pv_channel_close(end->channel);
    return NULL;
}

/* One byte each way in turn; the server starts. */
static void *ping(void *arg)
{
    struct end *end = arg;
    int ended = 0;

    end->spread = spread(end->out_key - 1);
    while (end->received < end->to_receive) {
        if (end->sent < end->received + (end->in_key == 2))
            send_some(end, 1);
        while (!receive(end, &ended))
            wait_for_news(end);
    }
    send_some(end, 1);
    return NULL;
}

static void meet(struct end *server, struct end *client, unsigned left, unsigned right)
{
    int fds[3], live[2];
    int error = pv_shm_create(left, right, &server->channel, fds);

    if (error < 0)
        die("create", error);
    error = pv_shm_join(fds[0], dup(fds[1]), dup(fds[2]), &client->channel);
    if (error < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, live) < 0 ||
        pv_channel_watch(server->channel, live[0]) < 0 ||
        pv_channel_watch(client->channel, live[1]) < 0)
        die("join", error);
    close(fds[0]);
}

static void run(const char *job, uint32_t *seed, int round, uint32_t count, unsigned left,
                unsigned right)
{
    struct end server = {.out_key = 1, .in_key = 2, .sleeps = 1, .seed = next(seed)};
    struct end client = {.out_key = 2, .in_key = 1, .sleeps = 1, .seed = next(seed)};
    struct end *one = round % 2 ? &server : &client, *two = round % 2 ? &client : &server;
    void *(*work)(void *) = mixed;
    pthread_t thread;

    meet(&server, &client, left, right);
    one->closes = 1;
    if (!strcmp(job, "mixed")) {
        one->to_send = next(seed) % MOST;
        two->to_send = next(seed) % MOST;
    } else if (!strcmp(job, "close")) {
        one->to_send = 1 + next(seed) % 3;
        one->dawdles = 1;
        two->sleeps = 0;
    } else if (!strcmp(job, "ping")) {
        one->to_send = two->to_send = count;
        one->dawdles = 1;
        one->sleeps = 0;
        work = ping;
    } else if (!strcmp(job, "fill")) {
        one->to_send = count << 10;
        two->sleeps = 0;
        two->dawdles = 1;
    } else {
        die("no such job", 0);
    }
    one->to_receive = two->to_send;
    two->to_receive = one->to_send;
    if (pthread_create(&thread, NULL, work, &server) != 0)
        die("thread", 0);
    work(&client);
    pthread_join(thread, NULL);
    pv_channel_free(server.channel);
    pv_channel_free(client.channel);
}

int main(int argc, char **argv)
{
    uint32_t seed = 1, rounds;

    if (argc != 5)
        die("usage: ring_soak JOB ROUNDS ORDER ORDER", argc);
    rounds = (uint32_t)atoi(argv[2]);
    sched_getaffinity(0, sizeof allowed, &allowed);
    if (!strcmp(argv[1], "ping") || !strcmp(argv[1], "fill")) {
        for (int round = 0; round < 2; round++) /* each end once in each part */
            run(argv[1], &seed, round, rounds, (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
        return 0;
    }
    for (uint32_t round = 0; round < rounds; round++)
        run(argv[1], &seed, (int)round, 0, (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
    return 0;
}
