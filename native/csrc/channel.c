#include "channel.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

/* Channels of this process that are waited on. */
static unsigned watched;

/* Whether other tasks wait for this process's event loop, too. */
static int loop_is_shared;

void pv_channel_share_loop(int is_shared)
{
    __atomic_store_n(&loop_is_shared, is_shared, __ATOMIC_RELAXED);
}

int pv_channel_watch(struct pv_channel *channel, int live_fd)
{
    struct epoll_event events = {.events = EPOLLIN, .data.fd = channel->event_fd};
    /* Only the hang-up counts: bytes on the rendezvous connection mean nothing and wake no one. */
    struct epoll_event death = {.events = EPOLLRDHUP, .data.fd = live_fd};
    int fd = epoll_create1(EPOLL_CLOEXEC);

    if (fd < 0)
        return -errno;
    if (epoll_ctl(fd, EPOLL_CTL_ADD, channel->event_fd, &events) < 0 ||
        (live_fd >= 0 && epoll_ctl(fd, EPOLL_CTL_ADD, live_fd, &death) < 0)) {
        int error = errno;
        close(fd);
        return -error;
    }
    channel->wait_fd = fd;
    channel->live_fd = live_fd;
    __atomic_fetch_add(&watched, 1, __ATOMIC_RELAXED);
    return 0;
}

int pv_channel_client_came(const struct pv_channel *channel)
{
    return __atomic_load_n(channel->ring.peer_live, __ATOMIC_ACQUIRE) != PV_LIVE_ABSENT;
}

int pv_channel_failure(const struct pv_channel *channel)
{
    return channel->ring.broken;
}

int pv_channel_wait_fd(const struct pv_channel *channel)
{
    return channel->wait_fd;
}

/* Keeps the peer's account of wake-ups: news are a step of either of its indices. */
static void count_wake(struct pv_channel *channel)
{
    const struct pv_ring *ring = &channel->ring;
    struct timespec now;

    if (channel->seen_in != ring->in.peer || channel->seen_out != ring->out.peer) {
        channel->seen_in = ring->in.peer;
        channel->seen_out = ring->out.peer;
        channel->idle_wakes -= channel->idle_wakes > 0;
        return;
    }
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (now.tv_sec != channel->idle_second) {
        channel->idle_second = now.tv_sec;
        channel->idle_wakes = 0;
    }
    if (++channel->idle_wakes > PV_IDLE_WAKES)
        pv_ring_fail(&channel->ring, PV_FLOODED);
}

void pv_channel_woken(struct pv_channel *channel)
{
    channel->clear(channel);
    count_wake(channel);
}

void pv_channel_died(struct pv_channel *channel)
{
    pv_ring_peer_gone(&channel->ring);
    /* A hang-up stays readable for ever; noting it once is enough. */
    epoll_ctl(channel->wait_fd, EPOLL_CTL_DEL, channel->live_fd, NULL);
}

void pv_channel_collect(struct pv_channel *channel)
{
    struct epoll_event events[2];
    int count;

    /* This is almost always the cause, and saves a system call. A death stays visible on wait_fd.
     * */
    if (!channel->muted && channel->clear(channel)) {
        count_wake(channel);
        return;
    }
    count = epoll_wait(channel->wait_fd, events, 2, 0);
    for (int i = 0; i < count; i++)
        if (events[i].data.fd == channel->live_fd)
            pv_channel_died(channel);
}

int64_t pv_channel_room(struct pv_channel *channel)
{
    int64_t room = pv_ring_room(&channel->ring);

    if (room == PV_WOULD_BLOCK) {
        pv_ring_arm(&channel->ring, PV_NOTIFY_READ);
        room = pv_ring_room(&channel->ring);
    }
    return room;
}

int64_t pv_channel_send(struct pv_channel *channel, const uint8_t *bytes, size_t count)
{
    int64_t room = pv_channel_room(channel);
    struct pv_direction *out = &channel->ring.out;
    uint32_t offset = out->own & (out->size - 1), total, first;

    if (room < 0)
        return room;
    total = (size_t)room < count ? (uint32_t)room : (uint32_t)count;
    first = total < out->size - offset ? total : out->size - offset;
    memcpy(out->data + offset, bytes, first);
    memcpy(out->data, bytes + first, total - first);
    pv_ring_produce(&channel->ring, total);
    return total;
}

int64_t pv_channel_peek(struct pv_channel *channel, size_t max, uint8_t **span)
{
    int64_t count = pv_ring_readable(&channel->ring, span);

    if (count == PV_WOULD_BLOCK) {
        pv_ring_arm(&channel->ring, PV_NOTIFY_WRITE);
        count = pv_ring_readable(&channel->ring, span);
    }
    return count > 0 && (size_t)count > max ? (int64_t)max : count;
}

void pv_channel_consume(struct pv_channel *channel, uint32_t count)
{
    pv_ring_consume(&channel->ring, count);
}

/* What a turn waits for. */
static int is_there(void *channel)
{
    return pv_ring_ready(&((struct pv_channel *)channel)->ring) != PV_WOULD_BLOCK;
}

/* Only this channel's owner waits for the event loop that a turn delays. */
static int is_alone(void)
{
    return !__atomic_load_n(&loop_is_shared, __ATOMIC_RELAXED) &&
           __atomic_load_n(&watched, __ATOMIC_RELAXED) <= 1;
}

int64_t pv_channel_turn(struct pv_channel *channel, const uint8_t *out, size_t count,
                        int64_t *sent, char *in, size_t max)
{
    size_t got = 0;

    /* This only saves work, so it needs no barrier: at worst the peer wakes us although we are
     * awake. */
    __atomic_fetch_and(channel->ring.asking, (uint8_t)~PV_NOTIFY_WRITE, __ATOMIC_RELAXED);
    *sent = count > 0 ? pv_channel_send(channel, out, count) : 0;
    if (*sent > 0) {
        pv_halt_poll_asked(&channel->poll);
        pv_halt_poll(&channel->poll, pv_halt_poll_budget(&channel->poll, is_alone()), is_there,
                     channel);
    }
    channel->armed = 0;
    while (got < max) {
        uint8_t *span;
        int64_t part = pv_channel_peek(channel, max - got, &span);

        if (part <= 0) {
            channel->armed = part == PV_WOULD_BLOCK;
            return got > 0 ? (int64_t)got : part;
        }
        pv_halt_poll_answered(&channel->poll);
        memcpy(in + got, span, (size_t)part);
        pv_channel_consume(channel, (uint32_t)part);
        got += (size_t)part;
    }
    return (int64_t)got;
}

int pv_channel_is_armed(const struct pv_channel *channel)
{
    return channel->armed;
}

int pv_channel_has_news(struct pv_channel *channel)
{
    return is_there(channel);
}

int pv_channel_mute(struct pv_channel *channel, int muted)
{
    struct epoll_event events = {.events = muted ? 0 : EPOLLIN, .data.fd = channel->event_fd};

    channel->muted = (uint8_t)muted;
    return epoll_ctl(channel->wait_fd, EPOLL_CTL_MOD, channel->event_fd, &events) < 0 ? -errno : 0;
}

int pv_channel_event_fd(const struct pv_channel *channel)
{
    return channel->event_fd;
}

void pv_channel_close(struct pv_channel *channel)
{
    pv_ring_close(&channel->ring);
}

void pv_channel_free(struct pv_channel *channel)
{
    /* First the flag in the page, then the hang-up: a peer that sees the hang-up sees the flag. */
    pv_ring_close(&channel->ring);
    if (channel->wait_fd >= 0) {
        close(channel->wait_fd);
        __atomic_fetch_sub(&watched, 1, __ATOMIC_RELAXED);
    }
    if (channel->live_fd >= 0)
        close(channel->live_fd);
    channel->detach(channel);
}
