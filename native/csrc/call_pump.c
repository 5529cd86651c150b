/* call_pump.h describes this. */
#include "call_pump.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "call_state.h"

/* Frames that are read before the other directions have their turn. */
#define FRAMES_AT_ONCE 16

#define SIGNAL (1u << PV_CALL_NOTE_SIGNAL)

static void obey(struct pv_call *call)
{
    /* Acquire: what belongs to an order is there. */
    uint32_t orders = __atomic_load_n(&call->orders, __ATOMIC_ACQUIRE) & ~call->obeyed;

    call->obeyed |= (uint8_t)orders;
    if (orders & PV_ORDER_CANCEL)
        pv_call_lose(call, PV_CALL_CANCELLED, 0);
    if (orders & PV_ORDER_MAIN_EXITED)
        pv_call_main_has_exited(call, call->ordered_main_status);
    /* If it is broken off, its output is dropped: how its program has ended is not its end then. */
    if ((orders & PV_ORDER_ABORT) ||
        ((orders & PV_ORDER_NOW) && call->ordered_exit.kind != PV_CALL_EXITED))
        call->is_ending = false;
    if (orders & PV_ORDER_EXIT)
        pv_call_decide(call, &call->ordered_exit);
    if ((orders & PV_ORDER_ABORT) && call->side == PV_CALL_SERVICE)
        pv_call_decide(call, &call->ordered_abort);
    if (orders & (PV_ORDER_ABORT | PV_ORDER_NOW))
        pv_call_drop_streams(call);
    if ((orders & PV_ORDER_ABORT) && call->side == PV_CALL_CALLER)
        pv_call_leave(call);
}

/* Wakes the other end for what was said: before a descriptor is closed, which may wait. */
static void wake_other(struct pv_call *call)
{
    struct pv_ring *ring = &call->channel->ring;

    if (call->has_said && !call->is_lost)
        ring->notify(ring->notify_arg);
    call->has_said = false;
}

/* One look at everything; true if something changed. */
static bool look(struct pv_call *call)
{
    bool changed = false;

    call->room_wanted = 0;
    for (int i = 0; i < FRAMES_AT_ONCE && pv_call_is_listening(call) && pv_call_receive(call); i++)
        changed = true;
    for (int i = 0; i < call->inwards; i++) {
        changed |= pv_inward_flush(&call->inward[i]);
        changed |= pv_call_heed(call, &call->inward[i]);
    }
    if (call->side == PV_CALL_SERVICE && call->inward[0].is_over)
        pv_call_note(call, PV_CALL_NOTE_STDIN_ENDED);
    while (!call->is_mute && pv_call_speak(call))
        changed = true;
    wake_other(call);
    for (int i = 0; i < call->outwards && !call->is_mute; i++)
        changed |= pv_call_fill(call, &call->outward[(i + call->turn) % call->outwards]);
    wake_other(call);
    call->turn ^= 1;
    return changed;
}

/* What we wait for in the ring, as bits to arm. */
static unsigned owed(const struct pv_call *call)
{
    /* Behind stdin or stdout that is blocked more of it means nothing; all else wakes us. */
    bool is_blocked = call->head.to && call->head.to->blocked;

    return (pv_call_is_listening(call) && !is_blocked ? PV_NOTIFY_WRITE : 0) |
           (call->room_wanted && !call->is_mute ? PV_NOTIFY_READ : 0);
}

/* Whether some of it is there. */
static int is_paid(void *arg)
{
    struct pv_call *call = arg;
    struct pv_ring *ring = &call->channel->ring;
    unsigned bits = owed(call);

    if ((bits & PV_NOTIFY_WRITE) &&
        (pv_ring_ready(ring) != call->heard || ring->final != call->heard_final))
        return 1;
    if (bits & PV_NOTIFY_READ) {
        int64_t room = pv_ring_room(ring);

        return room != PV_WOULD_BLOCK && (room < 0 || room >= call->room_wanted);
    }
    return 0;
}

/* Arms for it; true if it arrived in the meantime. pump.c says when polling pays. */
static bool arm_and_look_again(struct pv_call *call)
{
    struct pv_channel *channel = call->channel;
    unsigned bits = owed(call);

    if (!bits)
        return false;
    if ((channel->apart || channel->poll.mode != PV_POLL_SPIN) &&
        pv_halt_poll(&channel->poll, channel->poll.budget_ns, is_paid, call))
        return true;
    pv_ring_arm(&channel->ring, bits);
    return is_paid(call);
}

static bool has_ended(const struct pv_call *call)
{
    return call->progress.states[PV_CALL_CALLER] == PV_CALL_ENDED &&
           call->progress.states[PV_CALL_SERVICE] == PV_CALL_ENDED;
}

static bool awaits_end(const struct pv_call *call)
{
    return call->end_by_ms && !call->is_lost && !has_ended(call);
}

/* How long until a signal may be told: the other side sends as many as its user likes. */
static int64_t ms_until_signal(struct pv_call *call)
{
    int64_t now = pv_call_now_ms(CLOCK_MONOTONIC);

    if (now / 1000 != call->signals_second) {
        call->signals_second = now / 1000;
        call->signals_counted = 0;
    }
    return call->signals_counted < PV_CALL_SIGNALS_MAX ? 0 : 1000 - now % 1000;
}

void pv_call_woken(const struct pv_call *call)
{
    uint64_t ignored;

    if (read(call->wake_fd, &ignored, sizeof ignored) < 0)
        (void)ignored; /* EAGAIN: the order was seen already */
}

/* Milliseconds to wait, of which -1 are for ever. */
static int64_t sooner(int64_t left, int64_t until)
{
    until = until < 0 ? 0 : until;
    return left < 0 || until < left ? until : left;
}

/* Sleeps until something may have changed. */
static void wait_for_news(struct pv_call *call)
{
    struct pv_channel *channel = call->channel;
    enum { EVENT, DEATH, WAKE, KEEPER, STREAMS, COUNT = STREAMS + 4 };
    struct pollfd fds[COUNT] = {
        [EVENT] = {.fd = call->is_lost ? -1 : channel->event_fd, .events = POLLIN},
        [DEATH] = {.fd = call->is_lost || channel->ring.gone ? -1 : channel->live_fd,
                   .events = POLLRDHUP},
        [WAKE] = {.fd = call->wake_fd, .events = POLLIN},
        [KEEPER] = {.fd = pv_keeper_fd(&call->keeper), .events = POLLIN},
    };
    struct pollfd *at = fds + STREAMS;
    int64_t left = -1;

    for (int i = 0; i < call->inwards; i++)
        /* Even without events, poll reports that nobody reads any more. */
        *at++ = (struct pollfd){.fd = call->inward[i].fd.fd,
                                .events = call->inward[i].blocked ? POLLOUT : 0};
    for (int i = 0; i < call->outwards; i++)
        *at++ = (struct pollfd){.fd = call->outward[i].dry ? call->outward[i].fd.fd : -1,
                                .events = POLLIN};
    if (awaits_end(call))
        left = sooner(left, call->end_by_ms - pv_call_now_ms(CLOCK_MONOTONIC));
    if (call->notes & SIGNAL)
        left = sooner(left, ms_until_signal(call));
    if (call->remind_at_ms)
        left = sooner(left, call->remind_at_ms - pv_call_now_ms(CLOCK_MONOTONIC));
    if (poll(fds, (nfds_t)(at - fds), (int)left) < 0) {
        if (errno != EINTR)
            pv_call_lose(call, PV_CALL_FAILED, errno);
        return;
    }
    if (fds[EVENT].revents)
        pv_channel_woken(channel);
    if (fds[DEATH].revents)
        pv_channel_died(channel);
    if (fds[WAKE].revents)
        pv_call_woken(call);
    if (fds[KEEPER].revents)
        pv_keeper_hear(call);
    at = fds + STREAMS;
    for (int i = 0; i < call->inwards; i++, at++) {
        if (at->revents && call->inward[i].blocked)
            call->inward[i].blocked = false; /* errors show in write(2), which comes next */
        else if (at->revents) {
            pv_fd_hung_up(&call->inward[i].fd);
            pv_inward_close(&call->inward[i]);
        }
    }
    for (int i = 0; i < call->outwards; i++, at++)
        if (at->revents)
            call->outward[i].dry = false; /* hang-ups and errors show in read(2) */
}

static bool is_over(struct pv_call *call)
{
    if (awaits_end(call) && call->end_by_ms <= pv_call_now_ms(CLOCK_MONOTONIC))
        pv_call_lose(call, PV_CALL_NO_END, 0);
    if (!call->is_lost && !has_ended(call))
        return false;
    for (int i = 0; i < call->inwards; i++)
        if (!call->inward[i].is_over)
            return false;
    return true;
}

/* Something to tell, or 0. */
static int next_note(struct pv_call *call, int *number)
{
    uint32_t notes = call->notes;
    int event;

    if (notes & SIGNAL && ms_until_signal(call))
        notes &= ~SIGNAL;
    if (!notes && call->remind_at_ms && call->remind_at_ms <= pv_call_now_ms(CLOCK_MONOTONIC)) {
        call->remind_at_ms = 0;
        return PV_CALL_NOTE_DUE;
    }
    if (!notes)
        return 0;
    event = __builtin_ctz(notes);
    *number = event == PV_CALL_NOTE_MAIN_EXITED    ? (int)call->main_status
              : event == PV_CALL_NOTE_STDIN_ENDED  ? call->inward[0].has_eof
              : event == PV_CALL_NOTE_STDOUT_ENDED ? call->outward[0].has_ended
                                                   : 0;
    if (event == PV_CALL_NOTE_SIGNAL) {
        call->signals_counted++;
        *number = __builtin_ctzll(call->signals_in) + 1;
        call->signals_in &= call->signals_in - 1;
        if (call->signals_in)
            return event;
    }
    call->notes &= ~(1u << event);
    return event;
}

/* How it ended. */
static void conclude(struct pv_call *call)
{
    bool is_unsaid = !call->result.kind || call->result.kind == PV_CALL_ABORTED;

    if (call->is_cut || (call->is_leaving && is_unsaid)) {
        const struct pv_ending *why = call->failed.kind ? &call->failed : &call->ordered_abort;

        call->result.kind = call->failed.kind ? PV_CALL_PROBLEM : PV_CALL_ABORTED;
        call->result.status = 125;
        call->result.text_length = why->length;
        memcpy(call->result.text, why->text, why->length);
    } else if (!call->result.kind && call->is_ending && call->ending.kind == PV_CALL_ABORTED) {
        call->result.kind = PV_CALL_ABORTED;
        call->result.status = 125;
    }
    /* The service never begins: what is there now has nothing to do with a call. */
    if (!call->is_lost && call->side == PV_CALL_CALLER &&
        pv_ring_ready(&call->channel->ring) != PV_WOULD_BLOCK)
        pv_call_breach(call, "bytes after the end");
}

int pv_call_run(struct pv_call *call, struct pv_channel *channel, int *number)
{
    if (!call->channel)
        pv_halt_poll_forgive(&channel->poll);
    call->channel = channel;
    for (;;) {
        int event;
        bool changed;

        obey(call);
        pv_keeper_heed_streams(call);
        changed = look(call);
        event = next_note(call, number);
        if (event)
            return event;
        if (is_over(call)) {
            conclude(call);
            return PV_CALL_DONE;
        }
        if (!changed && !arm_and_look_again(call))
            wait_for_news(call);
    }
}

void pv_call_remind(struct pv_call *call, int ms)
{
    if (!call->remind_at_ms)
        call->remind_at_ms = pv_call_now_ms(CLOCK_MONOTONIC) + ms;
}

/* ---- what other threads call ---- */

static void order(struct pv_call *call, uint32_t bits)
{
    const uint64_t one = 1;
    ssize_t ignored;

    /* Release: what belongs to the order is there before it. */
    __atomic_fetch_or(&call->orders, bits, __ATOMIC_RELEASE);
    if (call->wake_fd < 0)
        return; /* the call is over */
    ignored = write(call->wake_fd, &one, sizeof one);
    (void)ignored; /* EAGAIN: readable already */
}

static bool is_ordered(const struct pv_call *call, uint32_t bit)
{
    return __atomic_load_n(&call->orders, __ATOMIC_RELAXED) & bit;
}

static struct pv_ending made(int kind, uint32_t status, const uint8_t *text, uint32_t length)
{
    struct pv_ending ending = {.kind = (uint32_t)kind, .status = status, .length = length};

    memcpy(ending.text, text, length);
    return ending;
}

void pv_call_cancel(struct pv_call *call)
{
    order(call, PV_ORDER_CANCEL);
}

void pv_call_abort(struct pv_call *call, const uint8_t *text, uint32_t length)
{
    if (is_ordered(call, PV_ORDER_ABORT))
        return;
    call->ordered_abort = made(PV_CALL_PROBLEM, 125, text, length);
    order(call, PV_ORDER_ABORT);
}

void pv_call_exit(struct pv_call *call, int kind, uint32_t status, const uint8_t *text,
                  uint32_t length, int now)
{
    if (!is_ordered(call, PV_ORDER_EXIT))
        call->ordered_exit = made(kind, status, text, length);
    order(call, PV_ORDER_EXIT | (now ? PV_ORDER_NOW : 0));
}

void pv_call_main_exited(struct pv_call *call, uint32_t status)
{
    if (is_ordered(call, PV_ORDER_MAIN_EXITED))
        return;
    call->ordered_main_status = status;
    order(call, PV_ORDER_MAIN_EXITED);
}

void pv_call_signal(struct pv_call *call, int number)
{
    __atomic_fetch_or(&call->signals_out, UINT64_C(1) << (number - 1), __ATOMIC_RELAXED);
    order(call, 0);
}

uint64_t pv_call_bytes(const struct pv_call *call, int stream)
{
    return __atomic_load_n(&call->bytes[stream], __ATOMIC_RELAXED);
}

const struct pv_call_result *pv_call_result(const struct pv_call *call)
{
    return &call->result;
}

/* ---- its life ---- */

struct pv_call *pv_call_new(int side, const uint8_t *id)
{
    struct pv_call *call = calloc(1, sizeof *call);

    if (!call)
        return NULL;
    call->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (call->wake_fd < 0) {
        free(call);
        return NULL;
    }
    pv_call_begin(&call->progress, id);
    call->side = (uint8_t)side;
    call->peer = !side;
    call->inwards = side == PV_CALL_CALLER ? 2 : 1;
    call->outwards = 3 - call->inwards;
    for (int i = 0; i < 2; i++) {
        bool is_caller = side == PV_CALL_CALLER;

        call->inward[i].fd.fd = call->outward[i].fd.fd = -1;
        call->inward[i].stream = is_caller ? (i ? PV_CALL_ERR : PV_CALL_OUT) : PV_CALL_IN;
        call->outward[i].stream = is_caller ? PV_CALL_IN : i ? PV_CALL_ERR : PV_CALL_OUT;
    }
    return call;
}

int pv_call_take(struct pv_call *call, int fd_in, int fd_out, int fd_err, int shuts)
{
    bool is_caller = call->side == PV_CALL_CALLER;
    struct pv_fd *fds[3] = {
        is_caller ? &call->outward[0].fd : &call->inward[0].fd,
        is_caller ? &call->inward[0].fd : &call->outward[0].fd,
        is_caller ? &call->inward[1].fd : &call->outward[1].fd,
    };
    int numbers[3] = {fd_in, fd_out, fd_err}, error = 0;

    for (int i = 0; i < 3; i++) {
        int result = pv_fd_take(fds[i], numbers[i], is_caller == (i > 0), shuts);

        error = error ? error : result;
        fds[i]->is_ours = !is_caller;
        call->has_streams |= numbers[i] >= 0;
    }
    if (error)
        pv_call_drop(call);
    /* Without a descriptor a stream has no end of its own to wait for. */
    for (int i = 0; i < call->inwards; i++) {
        call->inward[i].is_over = call->inward[i].fd.fd < 0;
        call->inward[i].is_unwanted = call->inward[i].is_over && !is_caller;
    }
    for (int i = 0; i < call->outwards; i++)
        call->outward[i].is_over = call->outward[i].fd.fd < 0;
    return error;
}

void pv_call_drop(struct pv_call *call)
{
    for (int i = 0; i < 2; i++) {
        pv_fd_close(&call->inward[i].fd);
        pv_fd_close(&call->outward[i].fd);
    }
}

void pv_call_release(struct pv_call *call)
{
    pv_call_drop(call);
    if (call->wake_fd >= 0)
        close(call->wake_fd);
    call->wake_fd = -1;
}

void pv_call_free(struct pv_call *call)
{
    pv_call_release(call);
    for (int i = 0; i < 2; i++)
        free(call->inward[i].bytes);
    free(call);
}
