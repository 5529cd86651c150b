/* 64 bytes to and fro over our ring, in C, between two processes.  Prints nanoseconds per round
   trip.
   usage: ring_pingpong ring|channel|patient CORE CORE TRIPS
   ring: the engine alone, in shared memory with an eventfd each way, as libxenvchan has an event
   channel; channel: as the stream has it, with epoll and the watch over the peer's life; patient:
   the same, by turns that look for the answer a while before they sleep. */
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "channel.h"
#include "pingpong.h"
#include "shm.h"

enum { ORDER = 16 }; /* a control channel's */

struct end {
    struct pv_ring *ring;
    struct pv_ring alone;
    struct pv_channel *channel; /* or NULL */
    int event_fd, notify_fd;    /* without a channel */
};

static void wake(void *arg)
{
    const struct end *end = arg;

    if (eventfd_write(end->notify_fd, 1))
        die("eventfd_write");
}

static void sleep_until_woken(struct end *end)
{
    eventfd_t count;
    struct pollfd readable;

    if (!end->channel) {
        if (eventfd_read(end->event_fd, &count))
            die("eventfd_read");
        return;
    }
    readable = (struct pollfd){.fd = pv_channel_wait_fd(end->channel), .events = POLLIN};
    if (poll(&readable, 1, -1) < 0)
        die("poll");
    pv_channel_collect(end->channel);
}

static void take(struct end *end, uint8_t *buffer)
{
    uint32_t got = 0;

    while (got < MESSAGE) {
        uint8_t *span;
        int64_t count = pv_ring_readable(end->ring, &span);

        if (count == PV_WOULD_BLOCK) {
            pv_ring_arm(end->ring, PV_NOTIFY_WRITE);
            count = pv_ring_readable(end->ring, &span);
        }
        if (count == PV_WOULD_BLOCK) {
            sleep_until_woken(end);
            continue;
        }
        if (count < 0) {
            fprintf(stderr, "ring_pingpong: the ring ended: %lld\n", (long long)count);
            exit(1);
        }
        if (count > MESSAGE - got)
            count = MESSAGE - got;
        memcpy(buffer + got, span, (size_t)count);
        pv_ring_consume(end->ring, (uint32_t)count);
        got += (uint32_t)count;
    }
}

/* The rest of a message of which a turn has brought the first `got` bytes. */
static void take_rest(struct end *end, uint8_t *buffer, int64_t got)
{
    int64_t sent;

    while (got < MESSAGE) {
        int64_t count = pv_channel_turn(end->channel, NULL, 0, &sent, (char *)buffer + got,
                                        (size_t)(MESSAGE - got));

        if (count == PV_WOULD_BLOCK)
            sleep_until_woken(end);
        else if (count < 0)
            exit(1);
        else
            got += count;
    }
}

static void swap_in_turn(struct end *end, uint8_t *buffer)
{
    int64_t sent, got;

    got = pv_channel_turn(end->channel, buffer, MESSAGE, &sent, (char *)buffer, MESSAGE);
    if (sent != MESSAGE || (got < 0 && got != PV_WOULD_BLOCK))
        exit(1);
    take_rest(end, buffer, got > 0 ? got : 0);
}

/* There is always room: one message is in flight. */
static void give(struct end *end, const uint8_t *buffer)
{
    uint32_t given = 0;

    while (given < MESSAGE) {
        uint8_t *span;
        int64_t room = pv_ring_writable(end->ring, &span);

        if (room < 0)
            exit(1);
        if (room > MESSAGE - given)
            room = MESSAGE - given;
        memcpy(span, buffer + given, (size_t)room);
        pv_ring_produce(end->ring, (uint32_t)room);
        given += (uint32_t)room;
    }
}

static void give_and_take(struct end *end, uint8_t *buffer, int is_patient)
{
    if (is_patient) {
        swap_in_turn(end, buffer);
    } else {
        give(end, buffer);
        take(end, buffer);
    }
}

int main(int argc, char **argv)
{
    static uint8_t buffer[MESSAGE];
    struct end end = {0};
    int is_patient, use_channel, descriptors[3] = {-1, -1, -1}, to_server, to_client;
    uint8_t *base = NULL;
    long trips;
    long long start;
    pid_t child;

    if (argc != 5)
        return 2;
    is_patient = !strcmp(argv[1], "patient");
    use_channel = is_patient || !strcmp(argv[1], "channel");
    trips = atol(argv[4]);
    if (use_channel) {
        if (pv_shm_create(ORDER, ORDER, &end.channel, descriptors) < 0)
            die("pv_shm_create");
    } else {
        base = mmap(NULL, pv_layout_size(ORDER, ORDER), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED)
            die("mmap");
        pv_page_init((struct vchan_interface *)base, ORDER, ORDER);
    }
    to_server = eventfd(0, EFD_CLOEXEC);
    to_client = eventfd(0, EFD_CLOEXEC);
    if (to_server < 0 || to_client < 0)
        die("eventfd");
    child = fork_pinned(atoi(argv[2]), atoi(argv[3]));
    if (use_channel) {
        /* The child is the client: it joins by the descriptors, as one that got them sent does. */
        if (child == 0 && pv_shm_join(descriptors[0], descriptors[1], descriptors[2], &end.channel))
            die("pv_shm_join");
        if (pv_channel_watch(end.channel, -1) < 0)
            die("pv_channel_watch");
        end.ring = &end.channel->ring;
        end.channel->poll.mode = is_patient ? PV_POLL_SPIN : PV_POLL_OFF;
    } else {
        end.event_fd = child ? to_server : to_client;
        end.notify_fd = child ? to_client : to_server;
        end.ring = &end.alone;
        pv_ring_attach(end.ring, (struct vchan_interface *)base, ORDER, ORDER, base + PV_PAGE_SIZE,
                       base + PV_PAGE_SIZE + (1 << ORDER), child != 0, wake, &end);
    }
    if (child == 0) {
        take(&end, buffer);
        for (long i = 1; i < WARM_UP(trips) + trips; i++)
            give_and_take(&end, buffer, is_patient);
        give(&end, buffer);
        pause(); /* the parent ends it, when it has all answers: no close is measured */
    }
    for (long i = 0; i < WARM_UP(trips); i++)
        give_and_take(&end, buffer, is_patient);
    start = now_ns();
    for (long i = 0; i < trips; i++)
        give_and_take(&end, buffer, is_patient);
    printf("%lld\n", (now_ns() - start) / trips);
    kill(child, SIGKILL);
    return wait(NULL) < 0;
}
