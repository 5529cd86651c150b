#include "pump.h"

#include "own_files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/*
 * Bytes per read(2) or write(2). Small enough that the peer starts on the first part while the rest
 * still arrives, and that both stay in a processor's cache; large enough that system calls do not
 * matter.
 */
#define CHUNK (128 * 1024)

/*
 * What is still read from fd_in once fd_out is gone. Its other end left its last words in a socket
 * buffer (208 KiB by default) or a pipe (64 KiB, 1 MiB at most for an ordinary user); a program
 * that writes without end must not keep the channel alive.
 */
#define LAST_WORDS (1024 * 1024)

/* Less room than one part in this many counts as none, so that a full ring is not filled in crumbs.
 * */
#define ROOM_FRACTION 8

/* A checked direction: our copy of bytes on their way. */
struct box {
    uint8_t *bytes;
    size_t have, cleared; /* cleared: of them, from the first on, may go on */
};

struct loop {
    struct pv_pump *pump;
    struct pv_channel *channel;
    int fd_in, fd_out;
    bool reading;      /* fd_in is still in use */
    bool writing;      /* fd_out is still in use */
    bool out_blocked;  /* fd_out accepts nothing at the moment */
    bool in_dry;       /* fd_in has nothing at the moment */
    bool ring_full;    /* wait for the peer to read */
    bool ring_empty;   /* wait for the peer to write */
    uint64_t in_left;  /* bytes that may still be read from fd_in */
    uint64_t out_left; /* bytes that may still be written to fd_out */
    struct box inward, outward; /* from the ring, to the ring; used with a check alone */
};

/* The first reason is the one that counts; the others follow from it. */
static void note(struct pv_pump *pump, int why, int error)
{
    if (!pump->why) {
        pump->why = why;
        pump->error = error;
    }
}

/* No byte will come from fd_in any more. The peer may know at once; we still pass on its bytes. */
static void end_reading(struct loop *loop)
{
    int64_t ready;

    loop->reading = false;
    pv_channel_close(loop->channel);
    ready = pv_ring_ready(&loop->channel->ring);
    loop->out_left = ready > 0 ? (uint64_t)ready : 0;
    if (!loop->out_left && !loop->inward.cleared)
        loop->writing = false;
}

static void end_writing(struct loop *loop)
{
    loop->writing = false;
    loop->in_dry = false; /* look once more: without an output, an empty input is the end */
    if (loop->in_left > LAST_WORDS)
        loop->in_left = LAST_WORDS;
}

/* The ring itself has ended; code says how. */
static void end_ring(struct loop *loop, int64_t code)
{
    note(loop->pump,
         code == PV_CLOSED    ? PV_PUMP_PEER_CLOSED
         : code == PV_DIED    ? PV_PUMP_PEER_DIED
         : code == PV_FLOODED ? PV_PUMP_PEER_FLOODED
                              : PV_PUMP_PEER_BROKEN,
         0);
    loop->reading = false; /* otherwise it would not be read from the ring */
}

/* Has count more bytes of the box checked. Bytes that are refused, and all after them, are lost. */
static void inspect(struct loop *loop, struct box *box, size_t count,
                    int64_t (*look)(struct pv_check *, uint8_t *, size_t))
{
    int64_t cleared;

    box->have += count;
    cleared = look(loop->pump->check, box->bytes, box->have);
    if (cleared >= 0) {
        box->have -= loop->pump->check->dropped;
        box->cleared = (size_t)cleared;
        return;
    }
    note(loop->pump, PV_PUMP_REFUSED, 0);
    loop->reading = false;
    loop->writing = false;
}

/* These went on. */
static void take_out(struct box *box, size_t count)
{
    box->have -= count;
    box->cleared -= count;
    memmove(box->bytes, box->bytes + count, box->have);
}

/* From the box to the ring. */
static void pass_on(struct loop *loop)
{
    uint8_t *span;
    int64_t room = pv_ring_writable(&loop->channel->ring, &span);

    if (room < 0)
        return; /* the next round finds out why */
    if ((uint64_t)room > loop->outward.cleared)
        room = (int64_t)loop->outward.cleared;
    memcpy(span, loop->outward.bytes, (size_t)room);
    pv_ring_produce(&loop->channel->ring, (uint32_t)room);
    loop->pump->to_ring += (uint64_t)room;
    take_out(&loop->outward, (size_t)room);
    if (!loop->in_left && !loop->outward.cleared)
        end_reading(loop);
}

/* fd_in to ring; true if something changed. */
static bool fill(struct loop *loop)
{
    struct pv_ring *ring = &loop->channel->ring;
    uint8_t *span;
    int64_t room = pv_ring_room(ring);
    ssize_t count;

    loop->ring_full = room == PV_WOULD_BLOCK || (room > 0 && room < ring->out.size / ROOM_FRACTION);
    if (loop->ring_full)
        return false;
    if (room < 0) {
        end_ring(loop, room);
        return true;
    }
    if (loop->outward.cleared) {
        pass_on(loop);
        return true;
    }
    if (loop->in_dry)
        return false;
    if (loop->pump->check) {
        span = loop->outward.bytes + loop->outward.have;
        room = (int64_t)(CHUNK - loop->outward.have);
    } else {
        room = pv_ring_writable(ring, &span);
        if (room < 0)
            return true; /* the next round finds out why */
        if (room > CHUNK)
            room = CHUNK;
    }
    if ((uint64_t)room > loop->in_left)
        room = (int64_t)loop->in_left;
    count = read(loop->fd_in, span, (size_t)room);
    if (count > 0) {
        loop->in_left -= (uint64_t)count;
        if (loop->pump->check) {
            inspect(loop, &loop->outward, (size_t)count, loop->pump->check->to_ring);
        } else {
            pv_ring_produce(ring, (uint32_t)count);
            loop->pump->to_ring += (uint64_t)count;
        }
        if (!loop->in_left && !loop->outward.cleared)
            end_reading(loop);
        return true;
    }
    if (count < 0 && errno == EINTR)
        return true;
    if (count < 0 && errno == EAGAIN) {
        loop->in_dry = true;
        if (loop->writing)
            return false;
        end_reading(loop); /* fd_out is gone, and these were the last words */
        return true;
    }
    note(loop->pump, count == 0 ? PV_PUMP_INPUT_ENDED : PV_PUMP_INPUT_FAILED,
         count == 0 ? 0 : errno);
    end_reading(loop);
    return true;
}

/* From the ring to the box. */
static void take_in(struct loop *loop, const uint8_t *span, size_t count)
{
    struct box *box = &loop->inward;

    if (count > CHUNK - box->have)
        count = CHUNK - box->have;
    if (count > loop->out_left)
        count = (size_t)loop->out_left;
    memcpy(box->bytes + box->have, span, count);
    pv_ring_consume(&loop->channel->ring, (uint32_t)count);
    loop->out_left -= count;
    inspect(loop, box, count, loop->pump->check->from_ring);
    if (!loop->out_left && !box->cleared)
        loop->writing = false;
}

/* Some bytes to fd_out, out of the ring or out of the box; true if something changed. */
static bool put(struct loop *loop, const uint8_t *bytes, size_t size)
{
    ssize_t count = write(loop->fd_out, bytes, size);

    if (count > 0) {
        loop->pump->to_fd += (uint64_t)count;
        if (loop->pump->check) {
            take_out(&loop->inward, (size_t)count);
        } else {
            pv_ring_consume(&loop->channel->ring, (uint32_t)count);
            loop->out_left -= (uint64_t)count;
        }
        if (!loop->out_left && !loop->inward.cleared)
            loop->writing = false;
        return true;
    }
    if (count < 0 && errno == EINTR)
        return true;
    if (count < 0 && errno == EAGAIN) {
        loop->out_blocked = true;
        return false;
    }
    note(loop->pump, PV_PUMP_OUTPUT_FAILED, count < 0 ? errno : EIO);
    end_writing(loop);
    return true;
}

/* Ring to fd_out; true if something changed. */
static bool drain(struct loop *loop)
{
    struct pv_ring *ring = &loop->channel->ring;
    uint8_t *span;
    int64_t ready;

    if (loop->inward.cleared)
        return !loop->out_blocked && put(loop, loop->inward.bytes, loop->inward.cleared);
    ready = pv_ring_readable(ring, &span);
    loop->ring_empty = ready == PV_WOULD_BLOCK;
    if (loop->ring_empty)
        return false;
    if (ready < 0) {
        end_ring(loop, ready);
        loop->writing = false; /* and everything that came is written */
        return true;
    }
    if (loop->pump->check) {
        take_in(loop, span, (size_t)ready);
        return true;
    }
    if (loop->out_blocked)
        return false;
    if (ready > CHUNK)
        ready = CHUNK;
    if ((uint64_t)ready > loop->out_left)
        ready = (int64_t)loop->out_left;
    return put(loop, span, (size_t)ready);
}

/* What we wait for in the ring, as bits to arm. */
static unsigned owed(const struct loop *loop)
{
    return (loop->reading && loop->ring_full ? PV_NOTIFY_READ : 0) |
           (loop->writing && loop->ring_empty ? PV_NOTIFY_WRITE : 0);
}

/* Whether some of it is there. */
static int is_paid(void *arg)
{
    struct loop *loop = arg;
    struct pv_ring *ring = &loop->channel->ring;
    unsigned bits = owed(loop);

    if (bits & PV_NOTIFY_READ) {
        int64_t room = pv_ring_room(ring);

        if (room != PV_WOULD_BLOCK && (room < 0 || room >= ring->out.size / ROOM_FRACTION))
            return 1;
    }
    return (bits & PV_NOTIFY_WRITE) && pv_ring_ready(ring) != PV_WOULD_BLOCK;
}

/* Arms for it; true if it arrived in the meantime. */
static bool arm_and_look_again(struct loop *loop)
{
    unsigned bits = owed(loop);

    if (!bits)
        return false;
    /*
     * Not while both ends spin in one system: they would occupy a processor each, and every other
     * event loop would be four times as late for its timers. Another domain's processors are not
     * ours, and waking it is expensive: there polling doubles the speed. On a single processor
     * yielding is a tenth faster than sleeping.
     */
    if ((loop->channel->apart || loop->channel->poll.mode != PV_POLL_SPIN) &&
        pv_halt_poll(&loop->channel->poll, loop->channel->poll.budget_ns, is_paid, loop))
        return true;
    pv_ring_arm(&loop->channel->ring, bits);
    return is_paid(loop);
}

/* Sleeps until something may have changed. Returns 0 or errno. */
static int wait_for_news(struct loop *loop)
{
    struct pv_channel *channel = loop->channel;
    enum { EVENT, DEATH, CANCEL, IN, OUT, COUNT };
    struct pollfd fds[COUNT] = {
        [EVENT] = {.fd = channel->event_fd, .events = POLLIN},
        [DEATH] = {.fd = channel->ring.gone ? -1 : channel->live_fd, .events = POLLRDHUP},
        [CANCEL] = {.fd = loop->pump->cancel_fd, .events = POLLIN},
        [IN] = {.fd = loop->reading && !loop->ring_full ? loop->fd_in : -1, .events = POLLIN},
        /* Even without events, poll reports an output whose other end is gone. */
        [OUT] = {.fd = loop->writing ? loop->fd_out : -1,
                 .events = loop->out_blocked ? POLLOUT : 0},
    };

    if (poll(fds, COUNT, -1) < 0)
        return errno == EINTR ? 0 : errno;
    if (fds[EVENT].revents)
        pv_channel_woken(channel);
    if (fds[DEATH].revents)
        pv_channel_died(channel);
    if (fds[IN].revents)
        loop->in_dry = false; /* hang-ups and errors show in read(2) */
    if (fds[OUT].revents & POLLOUT)
        loop->out_blocked = false; /* errors show in write(2), which comes next */
    else if (fds[OUT].revents & (POLLERR | POLLHUP | POLLNVAL)) {
        /* Not noted yet: a program that simply ended also shows as end of file on fd_in. */
        end_writing(loop);
    }
    return 0;
}

static void run(struct loop *loop)
{
    struct pv_pump *pump = loop->pump;

    while (loop->reading || loop->writing) {
        bool changed = false;
        int error;

        /* Relaxed: only the flag counts. If it is set just after, cancel_fd ends the wait below. */
        if (__atomic_load_n(&pump->cancelled, __ATOMIC_RELAXED)) {
            note(pump, PV_PUMP_CANCELLED, 0);
            return;
        }
        /* First the device: its answers make room for more. */
        if (loop->writing)
            changed |= drain(loop);
        if (loop->reading)
            changed |= fill(loop);
        if (changed || arm_and_look_again(loop))
            continue;
        error = wait_for_news(loop);
        if (error) {
            note(pump, PV_PUMP_FAILED, error);
            return;
        }
    }
    note(pump, PV_PUMP_OUTPUT_FAILED, EPIPE); /* if nothing else explained it */
}

static bool make_boxes(struct loop *loop)
{
    loop->inward.bytes = malloc(CHUNK);
    loop->outward.bytes = malloc(CHUNK);
    return loop->inward.bytes && loop->outward.bytes;
}

int pv_pump_init(struct pv_pump *pump)
{
    *pump = (struct pv_pump){.cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    return pump->cancel_fd < 0 ? -errno : 0;
}

void pv_pump_cancel(struct pv_pump *pump)
{
    const uint64_t one = 1;
    ssize_t ignored;

    __atomic_store_n(&pump->cancelled, 1, __ATOMIC_RELAXED);
    ignored = write(pump->cancel_fd, &one, sizeof one);
    (void)ignored; /* EAGAIN: readable already */
}

static void run_here(struct pv_pump *pump, struct pv_channel *channel, int fd_in, int fd_out)
{
    struct loop loop = {
        .pump = pump,
        .channel = channel,
        .fd_in = fd_in,
        .fd_out = fd_out,
        .reading = true,
        .writing = true,
        .in_left = UINT64_MAX,
        .out_left = UINT64_MAX,
    };
    int in_flags = fcntl(fd_in, F_GETFL), out_flags = fcntl(fd_out, F_GETFL);

    pv_halt_poll_forgive(&channel->poll);
    /*
     * The other end of a checked pump's descriptors is this domain's kernel. Most often its word is
     * next, and a spin does not look there; and on a single processor it cannot run meanwhile. With
     * a spin USB/IP between domains was half as fast.
     */
    if (pump->check && channel->apart && channel->poll.mode == PV_POLL_SPIN)
        channel->poll.mode = PV_POLL_YIELD;

    /*
     * Non-blocking, because a write(2) to a pipe that poll calls writable still blocks when more is
     * written than fits, and then it could not be cancelled.
     */
    if (in_flags < 0 || out_flags < 0 || fcntl(fd_in, F_SETFL, in_flags | O_NONBLOCK) < 0 ||
        fcntl(fd_out, F_SETFL, out_flags | O_NONBLOCK) < 0) {
        note(pump, PV_PUMP_FAILED, errno);
    } else if (pump->check && !make_boxes(&loop)) {
        note(pump, PV_PUMP_FAILED, ENOMEM);
    } else {
        run(&loop);
    }
    free(loop.inward.bytes);
    free(loop.outward.bytes);
    pv_channel_close(channel);
    if (out_flags >= 0)
        fcntl(fd_out, F_SETFL, out_flags);
    if (in_flags >= 0)
        fcntl(fd_in, F_SETFL, in_flags);
}

struct alone {
    struct pv_pump *pump;
    struct pv_channel *channel;
    int fd;
};

static void run_alone(void *arg)
{
    const struct alone *alone = arg;

    run_here(alone->pump, alone->channel, alone->fd, alone->fd);
}

void pv_pump_run(struct pv_pump *pump, struct pv_channel *channel, int fd_in, int fd_out)
{
    struct alone alone = {pump, channel, fd_in};
    const int fds[] = {
        fd_in,           channel->event_fd, channel->notify_fd, channel->live_fd, channel->wait_fd,
        pump->cancel_fd,
    };

    if (pump->alone) {
        pump->unalone = pv_own_files_run(fds, sizeof fds / sizeof *fds, run_alone, &alone);
        if (!pump->unalone)
            return;
    }
    run_here(pump, channel, fd_in, fd_out);
}

void pv_pump_done(struct pv_pump *pump)
{
    close(pump->cancel_fd);
    pump->cancel_fd = -1;
}
