/* call_state.h describes this. */
#include "call_state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t pv_call_now_ms(int clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

static bool has_eof(const struct pv_call *call, int stream)
{
    return call->progress.streams[stream] == PV_CALL_FINISHED ||
           call->progress.streams[stream] == PV_CALL_STREAM_OVER;
}

void pv_call_note(struct pv_call *call, int event)
{
    if (event != PV_CALL_NOTE_SIGNAL && (call->noted & 1u << event))
        return;
    call->notes |= 1u << event;
    call->noted |= 1u << event;
}

/* All streams end here and now. */
void pv_call_drop_streams(struct pv_call *call)
{
    for (int i = 0; i < call->inwards; i++)
        pv_inward_close(&call->inward[i]);
    for (int i = 0; i < call->outwards; i++)
        pv_outward_close(&call->outward[i]);
}

static void cut(struct pv_call *call, const char *why)
{
    struct pv_ending ending = {.kind = PV_CALL_PROBLEM, .status = 125};

    ending.length = (uint32_t)strlen(why);
    memcpy(ending.text, why, ending.length);
    call->failed = ending;
    call->is_cut = true;
}

/* The channel is of no use any more. A caller still writes what it has. */
void pv_call_lose(struct pv_call *call, int why, int error)
{
    static const char ENDED[] = "the agent of this VM has ended";

    if (call->is_lost)
        return;
    call->is_lost = call->is_mute = true;
    call->result.why = why;
    call->result.error = error;
    pv_channel_close(call->channel);
    call->head.to = NULL;
    /* The service has ended well, but its output has not come to the program that calls. */
    for (int i = 0; i < call->inwards; i++)
        if (why == PV_CALL_CANCELLED && call->side == PV_CALL_CALLER && call->result.kind &&
            !call->inward[i].is_over)
            cut(call, ENDED);
    if (call->side == PV_CALL_SERVICE || why == PV_CALL_CANCELLED)
        pv_call_drop_streams(call);
    if (call->side == PV_CALL_SERVICE && call->progress.states[call->side] != PV_CALL_ENDED)
        pv_call_note(call, PV_CALL_NOTE_CALLER_GONE);
    for (int i = 0; i < call->inwards; i++)
        call->inward[i].has_eof = true;
    for (int i = 0; i < call->outwards; i++)
        pv_outward_close(&call->outward[i]);
}

static void lose_ring(struct pv_call *call, int64_t code)
{
    pv_call_lose(call,
         code == PV_CLOSED    ? PV_CALL_PEER_CLOSED
         : code == PV_DIED    ? PV_CALL_PEER_DIED
         : code == PV_FLOODED ? PV_CALL_PEER_FLOODED
                              : PV_CALL_PEER_BROKEN,
         0);
}

void pv_call_breach(struct pv_call *call, const char *what)
{
    if (!call->is_lost)
        call->result.breach = what;
    pv_call_lose(call, PV_CALL_BREACH, 0);
}

/* ---- frames that come ---- */

void pv_call_decide(struct pv_call *call, const struct pv_ending *ending)
{
    if (call->is_ending)
        return;
    call->is_ending = true;
    call->ending = *ending;
}

void pv_call_main_has_exited(struct pv_call *call, uint32_t status)
{
    if (call->has_main_exited)
        return;
    call->has_main_exited = true;
    call->main_status = status;
}

static void take_exit(struct pv_call *call, uint32_t length, const uint8_t *rest)
{
    call->result.kind = (int)pv_call_number(rest);
    call->result.status = pv_call_number(rest + 4);
    call->result.text_length = length - 8;
    memcpy(call->result.text, rest + 8, length - 8);
    pv_call_note(call, PV_CALL_NOTE_EXITED);
    pv_outward_close(&call->outward[0]);
    for (int i = 0; i < call->inwards; i++)
        call->inward[i].has_eof = true; /* they have one, unless the service never started */
}

/* As for a process, those that were not told yet are one. */
static void take_signal(struct pv_call *call, uint32_t number)
{
    call->signals_in |= UINT64_C(1) << (number - 1);
    pv_call_note(call, PV_CALL_NOTE_SIGNAL);
}

static void take_abort(struct pv_call *call)
{
    static const struct pv_ending GONE = {.kind = PV_CALL_ABORTED, .status = 125};

    pv_call_note(call, PV_CALL_NOTE_CALLER_GONE);
    pv_call_drop_streams(call);
    pv_call_decide(call, &GONE);
}

/* A frame that is not data has come, and fits. */
static void take_frame(struct pv_call *call, int type, uint32_t length, const uint8_t *rest)
{
    switch (type) {
    case PV_CALL_STARTED:
        pv_call_note(call, PV_CALL_NOTE_STARTED);
        return;
    case PV_CALL_STDIN_EOF:
    case PV_CALL_STDOUT_EOF:
        call->inward[0].has_eof = true;
        return;
    case PV_CALL_STDERR_EOF:
        call->inward[1].has_eof = true;
        return;
    case PV_CALL_STDOUT_CLOSED:
        pv_call_note(call, PV_CALL_NOTE_STDOUT_ENDED);
        pv_outward_close(&call->outward[0]);
        return;
    case PV_CALL_STDIN_CLOSED:
        pv_outward_close(&call->outward[0]);
        return;
    case PV_CALL_MAIN_EXITED:
        call->main_status = pv_call_number(rest);
        pv_call_note(call, PV_CALL_NOTE_MAIN_EXITED);
        return;
    case PV_CALL_EXIT:
        take_exit(call, length, rest);
        return;
    case PV_CALL_SIGNAL:
        take_signal(call, pv_call_number(rest));
        return;
    case PV_CALL_ABORT:
        take_abort(call);
        return;
    default:
        return; /* credit, CALL, END: the progress has them */
    }
}

static void count_bytes(struct pv_call *call, int type, uint32_t length)
{
    int stream = pv_call_stream_of(type);
    uint64_t sum = call->bytes[stream] + length;

    /* Relaxed: nothing else depends on it. */
    __atomic_store_n(&call->bytes[stream], sum, __ATOMIC_RELAXED);
}

/* The frame at the front of the ring; true if something changed. */
static bool take_next(struct pv_call *call, uint32_t ready)
{
    struct pv_ring *ring = &call->channel->ring;
    uint8_t frame[PV_CALL_CONTROL_MAX];
    const char *why;
    uint32_t length;
    int type;

    if (ready < PV_CALL_HEADER)
        return false;
    pv_ring_copy(ring, 0, frame, PV_CALL_HEADER);
    why = pv_call_header_read(frame, call->peer, &type, &length);
    if (!why && pv_call_event_of(type) == PV_CALL_IS_DATA) {
        why = pv_call_step(&call->progress, call->peer, type, length, NULL);
        if (!why) {
            count_bytes(call, type, length);
            call->head = (struct pv_head){.to = &call->inward[type == PV_CALL_STDERR],
                                          .skip = PV_CALL_HEADER,
                                          .part = length,
                                          .scanned = call->head.scanned};
            return true;
        }
    } else if (!why) {
        if (ready < PV_CALL_HEADER + length)
            return false;
        pv_ring_copy(ring, PV_CALL_HEADER, frame + PV_CALL_HEADER, length);
        why = pv_call_step(&call->progress, call->peer, type, length, frame + PV_CALL_HEADER);
        if (!why) {
            pv_head_consume(&call->head, ring, PV_CALL_HEADER + length);
            take_frame(call, type, length, frame + PV_CALL_HEADER);
            return true;
        }
    }
    pv_call_breach(call, why);
    return true;
}

/* Whether frames of this call can still come. What follows a caller's END is another call's. */
bool pv_call_is_listening(const struct pv_call *call)
{
    return !call->is_lost && call->progress.states[call->peer] != PV_CALL_ENDED;
}

/* One step of reading; true if something changed. */
bool pv_call_receive(struct pv_call *call)
{
    struct pv_ring *ring = &call->channel->ring;
    int64_t ready = pv_ring_ready(ring);
    int error = 0;
    bool changed;

    call->heard = ready;
    call->heard_final = ring->final;
    if (ready == PV_WOULD_BLOCK)
        return false;
    if (ready < 0) {
        lose_ring(call, ready);
        return true;
    }
    changed = call->head.to ? pv_inward_take(&call->head, ring, (uint32_t)ready, &error)
                            : take_next(call, (uint32_t)ready);
    if (error)
        pv_call_lose(call, PV_CALL_FAILED, -error);
    if (!changed && ring->final) {
        lose_ring(call, ring->clean ? PV_CLOSED : PV_DIED); /* in the middle of a frame */
        return true;
    }
    return changed;
}

/* ---- frames that go ---- */

/* A frame of one number, or of none (0: no credit, signal or status is). */
static uint32_t make(uint8_t *frame, int type, uint32_t number)
{
    uint32_t length = number || type == PV_CALL_MAIN_EXITED ? 4 : 0;

    pv_call_header_write(frame, type, length);
    if (length)
        pv_call_put_number(frame + PV_CALL_HEADER, number);
    return PV_CALL_HEADER + length;
}

static uint32_t make_with_id(const struct pv_call *call, uint8_t *frame, int type)
{
    pv_call_header_write(frame, type, PV_CALL_ID);
    memcpy(frame + PV_CALL_HEADER, call->progress.id, PV_CALL_ID);
    return PV_CALL_HEADER + PV_CALL_ID;
}

static uint32_t make_exit(const struct pv_call *call, uint8_t *frame)
{
    const struct pv_ending *ending = &call->ending;

    pv_call_header_write(frame, PV_CALL_EXIT, 8 + ending->length);
    pv_call_put_number(frame + PV_CALL_HEADER, ending->kind);
    pv_call_put_number(frame + PV_CALL_HEADER + 4, ending->status);
    memcpy(frame + PV_CALL_HEADER + 8, ending->text, ending->length);
    return PV_CALL_HEADER + 8 + ending->length;
}

/* The type of the credit that is due for a stream that comes in; 0: none. */
static int credit_due(const struct pv_call *call, const struct pv_inward *inward)
{
    if (inward->unpaid < pv_call_window(inward->stream) / 2 ||
        call->progress.streams[inward->stream] != PV_CALL_FLOWING)
        return 0;
    return inward->stream == PV_CALL_IN    ? PV_CALL_STDIN_CREDIT
           : inward->stream == PV_CALL_OUT ? PV_CALL_STDOUT_CREDIT
                                           : PV_CALL_STDERR_CREDIT;
}

/* What the caller's side has to say next, but for data; its size, 0: nothing. */
static uint32_t callers_next(const struct pv_call *call, uint8_t *frame)
{
    const struct pv_call_progress *progress = &call->progress;
    bool has_exit = progress->states[PV_CALL_SERVICE] >= PV_CALL_CLOSING;
    uint64_t signals = __atomic_load_n(&call->signals_out, __ATOMIC_RELAXED);

    if (progress->states[PV_CALL_CALLER] == PV_CALL_START)
        return make_with_id(call, frame, PV_CALL_CALL);
    if (progress->states[PV_CALL_CALLER] == PV_CALL_ENDED)
        return 0;
    if (progress->states[PV_CALL_CALLER] == PV_CALL_CLOSING)
        return make(frame, PV_CALL_END, 0);
    if (call->is_leaving)
        return make(frame, PV_CALL_ABORT, 0);
    if (call->outward[0].is_over && !has_eof(call, PV_CALL_IN))
        return make(frame, PV_CALL_STDIN_EOF, 0);
    if (has_exit)
        return make(frame, PV_CALL_END, 0);
    if (signals)
        return make(frame, PV_CALL_SIGNAL, (uint32_t)__builtin_ctzll(signals) + 1);
    if (call->inward[0].is_unwanted && progress->streams[PV_CALL_OUT] == PV_CALL_FLOWING)
        return make(frame, PV_CALL_STDOUT_CLOSED, 0);
    for (int i = 0; i < call->inwards; i++)
        if (credit_due(call, &call->inward[i]))
            return make(frame, credit_due(call, &call->inward[i]), call->inward[i].unpaid);
    return 0;
}

/* The same of the service's side, which says nothing before it was called. */
static uint32_t services_next(const struct pv_call *call, uint8_t *frame)
{
    const struct pv_call_progress *progress = &call->progress;
    bool has_ended = has_eof(call, PV_CALL_OUT) && has_eof(call, PV_CALL_ERR);

    if (progress->states[PV_CALL_CALLER] == PV_CALL_START ||
        progress->states[PV_CALL_SERVICE] == PV_CALL_ENDED)
        return 0;
    if (progress->states[PV_CALL_SERVICE] == PV_CALL_START)
        return call->is_ending && (call->is_unbegun || !call->has_streams)
                   ? make_exit(call, frame)
                   : make_with_id(call, frame, PV_CALL_STARTED);
    if (progress->states[PV_CALL_SERVICE] == PV_CALL_CLOSING)
        return make(frame, PV_CALL_END, 0);
    if (call->has_main_exited && !progress->main_exited && !has_ended)
        return make(frame, PV_CALL_MAIN_EXITED, call->main_status);
    for (int i = 0; i < call->outwards; i++)
        if (call->outward[i].is_over && !has_eof(call, call->outward[i].stream))
            return make(frame, i ? PV_CALL_STDERR_EOF : PV_CALL_STDOUT_EOF, 0);
    if (call->inward[0].is_unwanted && progress->streams[PV_CALL_IN] == PV_CALL_FLOWING)
        return make(frame, PV_CALL_STDIN_CLOSED, 0);
    if (has_ended && call->is_ending)
        return make_exit(call, frame);
    if (credit_due(call, &call->inward[0]))
        return make(frame, PV_CALL_STDIN_CREDIT, call->inward[0].unpaid);
    return 0;
}

void pv_call_leave(struct pv_call *call)
{
    if (call->progress.states[PV_CALL_SERVICE] >= PV_CALL_CLOSING)
        return;
    call->is_leaving = true;
    pv_call_await_end(call);
}

void pv_call_await_end(struct pv_call *call)
{
    if (!call->end_by_ms)
        call->end_by_ms = pv_call_now_ms(CLOCK_MONOTONIC) + PV_CALL_END_MS;
}

/* A frame of ours was written. */
static void said(struct pv_call *call, int type, const uint8_t *rest)
{
    int stream = pv_call_stream_of(type);

    if (pv_call_event_of(type) == PV_CALL_IS_CREDIT) {
        for (int i = 0; i < call->inwards; i++)
            if (call->inward[i].stream == stream)
                call->inward[i].unpaid = 0;
    } else if (type == PV_CALL_SIGNAL) {
        __atomic_fetch_and(&call->signals_out, ~(UINT64_C(1) << (pv_call_number(rest) - 1)),
                           __ATOMIC_RELAXED);
    } else if (type == PV_CALL_EXIT) {
        call->result.kind = (int)call->ending.kind;
        call->result.status = call->ending.status;
        call->result.text_length = call->ending.length;
        memcpy(call->result.text, call->ending.text, call->ending.length);
    } else if (type == PV_CALL_END) {
        pv_call_await_end(call);
    }
}

/* Room in the ring; 0 if there is none, or no other end that would read. */
static uint32_t room_in(struct pv_call *call)
{
    int64_t room = pv_ring_room(&call->channel->ring);

    if (room < PV_WOULD_BLOCK && pv_call_is_listening(call))
        call->is_mute = true; /* what it has sent is still to be read, and then its end shows */
    else if (room < PV_WOULD_BLOCK)
        lose_ring(call, room);
    return room > 0 ? (uint32_t)room : 0;
}

static void want_room(struct pv_call *call, uint32_t room)
{
    if (!call->room_wanted || room < call->room_wanted)
        call->room_wanted = room;
}

/* One frame that is not data; true if one was sent. */
bool pv_call_speak(struct pv_call *call)
{
    uint8_t frame[PV_CALL_CONTROL_MAX];
    const uint8_t *rest = frame + PV_CALL_HEADER;
    uint32_t size;
    const char *why;

    /* A service that has ended reads no more. */
    if (call->side == PV_CALL_SERVICE && call->is_ending && has_eof(call, PV_CALL_OUT) &&
        has_eof(call, PV_CALL_ERR))
        pv_inward_close(&call->inward[0]);
    size = call->side == PV_CALL_CALLER ? callers_next(call, frame) : services_next(call, frame);
    if (!size || room_in(call) < size) {
        if (size)
            want_room(call, size);
        return false;
    }
    why = pv_call_step(&call->progress, call->side, frame[0], size - PV_CALL_HEADER, rest);
    if (why) {
        call->result.breach = why;
        pv_call_lose(call, PV_CALL_FAILED, EPROTO); /* our own mistake */
        return true;
    }
    pv_ring_put(&call->channel->ring, frame, size);
    call->has_said = true;
    said(call, frame[0], rest);
    return true;
}

/* What a stream's error is for people. */
static struct pv_ending failure(int stream, const char *what, int error)
{
    static const char *const NAMES[2][PV_CALL_STREAMS] = {
        {"the caller's standard input", "the service's standard output",
         "the service's standard error"},
        {"the service's standard input", "the caller's standard output",
         "the caller's standard error"},
    };
    struct pv_ending ending = {.kind = PV_CALL_PROBLEM, .status = 125};
    bool is_written = !strcmp(what, "written");
    char words[PV_CALL_TEXT_MAX / 2];
    int length = snprintf((char *)ending.text, sizeof ending.text, "%s cannot be %s: %s",
                          NAMES[is_written][stream], what,
                          strerror_r(error, words, sizeof words));

    ending.length = length < (int)sizeof ending.text ? (uint32_t)length : sizeof ending.text - 1;
    return ending;
}

/* A stream cannot be read to its end: so the call must not end as if it had been. */
static void fail(struct pv_call *call, const struct pv_outward *outward)
{
    struct pv_ending ending = failure(outward->stream, "read", outward->fd.error);

    pv_call_drop_streams(call);
    if (call->side == PV_CALL_SERVICE) {
        pv_call_decide(call, &ending);
    } else {
        call->failed = ending;
        pv_call_leave(call);
    }
}

bool pv_call_heed(struct pv_call *call, struct pv_inward *inward)
{
    struct pv_ending ending;

    if (!inward->fd.error)
        return false;
    ending = failure(inward->stream, "written", inward->fd.error);
    inward->fd.error = 0;
    if (call->side == PV_CALL_SERVICE) {
        pv_call_decide(call, &ending); /* what the service has still to say is heard */
        return true;
    }
    call->failed = ending;
    call->is_cut = true;
    pv_call_drop_streams(call);
    pv_call_leave(call);
    return true;
}

/* Some data of one of our streams; true if something changed. */
bool pv_call_fill(struct pv_call *call, struct pv_outward *outward)
{
    int type = outward->stream == PV_CALL_IN    ? PV_CALL_STDIN
               : outward->stream == PV_CALL_OUT ? PV_CALL_STDOUT
                                                : PV_CALL_STDERR;
    struct pv_ring *ring = &call->channel->ring;
    ssize_t count;

    if (outward->is_over || pv_call_next(call->side, call->progress.states[call->side], type) < 0)
        return false;
    count = pv_outward_fill(outward, ring, room_in(call), call->progress.credit[outward->stream]);
    if (outward->ring_full)
        want_room(call, pv_outward_room(ring));
    if (count == PV_FD_LATER)
        return false;
    if (count == PV_FD_FAILED) {
        fail(call, outward);
        return true;
    }
    if (count == PV_FD_OVER) {
        outward->has_ended = true;
        pv_outward_close(outward);
        if (outward->stream == PV_CALL_OUT)
            pv_call_note(call, PV_CALL_NOTE_STDOUT_ENDED);
        return true;
    }
    pv_call_step(&call->progress, call->side, type, (uint32_t)count, NULL); /* within credit */
    count_bytes(call, type, (uint32_t)count);
    if (outward->stream == PV_CALL_ERR) {
        pv_ring_say(ring, PV_CALL_HEADER + (uint32_t)count);
        call->has_said = true;
    } else {
        pv_ring_produce(ring, PV_CALL_HEADER + (uint32_t)count);
    }
    return true;
}

