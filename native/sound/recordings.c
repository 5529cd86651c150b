#include "recordings.h"

#include "clock.h"
#include "link.h"
#include "log.h"
#include "server.h"
#include "sources.h"
#include "timing.h"

#include <pulse/error.h>
#include <pulse/stream.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RATE 48000u
#define SAMPLE ((uint32_t)sizeof(int16_t))
/* 10 ms: what the server gives at once. */
#define FRAGMENT (RATE / 100 * SAMPLE)
/* A resampled source comes in pieces of a few samples, up to 200 a second. So small they would cost
 * the listeners' sockets more than their bytes: they wait for each other, this long at most. */
#define GATHERED (RATE / 200)
#define GATHERED_MAX (RATE / 50)
/* What the server keeps for us while this machine stalls. */
#define BACKLOG (RATE * SAMPLE)
/* A source that is there and cannot be recorded (busy, not ready yet) is tried again. */
#define RETRY_MS 500

struct recording {
    struct recording *next;
    struct recordings *all;
    char name[SOURCE_NAME_MAX + 1];
    char title[LINK_LINE_MAX + 1];
    unsigned listeners;
    pa_stream *stream;
    int16_t gathered[GATHERED_MAX];
    size_t gathered_count;
    bool is_live;
    struct clock_timer retry;
};

struct recordings {
    pa_mainloop_api *loop;
    const struct recordings_events *events;
    void *context;
    pa_context *pulse;
    struct recording *first;
};

/* A stream that is being made cannot be disconnected yet. It is when it is made: nobody knows of it
 * any more, and it would record until the program ends. */
static void close_late(pa_stream *stream, void *context)
{
    (void)context;
    switch (pa_stream_get_state(stream)) {
    case PA_STREAM_READY:
        pa_stream_disconnect(stream);
        return;
    case PA_STREAM_FAILED:
    case PA_STREAM_TERMINATED:
        pa_stream_set_state_callback(stream, NULL, NULL);
        pa_stream_unref(stream);
        return;
    default:
        return;
    }
}

static void stream_close(struct recording *recording)
{
    pa_stream *stream = recording->stream;

    recording->stream = NULL;
    recording->is_live = false;
    recording->gathered_count = 0;
    if (!stream)
        return;
    pa_stream_set_read_callback(stream, NULL, NULL);
    if (pa_stream_get_state(stream) == PA_STREAM_CREATING) {
        pa_stream_set_state_callback(stream, close_late, NULL);
        return;
    }
    pa_stream_set_state_callback(stream, NULL, NULL);
    pa_stream_disconnect(stream);
    pa_stream_unref(stream);
}

/* The server refuses it, has taken it away, or put it elsewhere: it is tried again. */
static void stream_lost(struct recording *recording, const char *why)
{
    struct recordings *all = recording->all;
    bool was_live = recording->is_live;

    log_detail("cannot record %s: %s", recording->name, why);
    stream_close(recording);
    if (all->pulse)
        clock_timer_set(&recording->retry, clock_now() + RETRY_MS);
    if (was_live)
        all->events->turned(all->context, recording);
}

/* Says who listens; a stream that is being made is told when it is made. */
static void tell_title(const struct recording *recording)
{
    if (recording->stream && pa_stream_get_state(recording->stream) == PA_STREAM_READY)
        server_forget(pa_stream_set_name(recording->stream, recording->title, NULL, NULL));
}

static void stream_state(pa_stream *stream, void *context)
{
    struct recording *recording = context;
    const char *name;

    switch (pa_stream_get_state(stream)) {
    case PA_STREAM_READY:
        /* Whatever else the server records for us is not what was asked for. */
        name = pa_stream_get_device_name(stream);
        if (!name || strcmp(name, recording->name) != 0) {
            stream_lost(recording, "the server gives another source");
            return;
        }
        recording->is_live = true;
        tell_title(recording);
        recording->all->events->turned(recording->all->context, recording);
        return;
    case PA_STREAM_FAILED:
    case PA_STREAM_TERMINATED:
        stream_lost(recording, pa_strerror(pa_context_errno(pa_stream_get_context(stream))));
        return;
    default:
        return;
    }
}

static void gather(struct recording *recording, const int16_t *samples, size_t count)
{
    size_t room = GATHERED_MAX - recording->gathered_count, part = count < room ? count : room;

    memcpy(recording->gathered + recording->gathered_count, samples, part * SAMPLE);
    recording->gathered_count += part;
}

static void give(struct recording *recording)
{
    struct recordings *all = recording->all;
    size_t count = recording->gathered_count;

    recording->gathered_count = 0;
    all->events->heard(all->context, recording, recording->gathered, count);
}

static void stream_readable(pa_stream *stream, size_t size, void *context)
{
    struct recording *recording = context;

    (void)size;
    while (pa_stream_readable_size(stream) > 0) {
        const void *data;
        const int16_t *samples;
        size_t bytes, count;

        if (pa_stream_peek(stream, &data, &bytes) < 0 || !bytes)
            return;
        samples = data;
        count = bytes / SAMPLE;
        /* Without data: a hole, for which the target has silence of its own. */
        while (samples && recording->is_live && count) {
            size_t before = recording->gathered_count;

            gather(recording, samples, count);
            samples += recording->gathered_count - before;
            count -= recording->gathered_count - before;
            if (recording->gathered_count == GATHERED_MAX)
                give(recording);
        }
        pa_stream_drop(stream);
    }
    if (recording->gathered_count >= GATHERED)
        give(recording);
}

static void stream_open(struct recording *recording)
{
    static const pa_sample_spec SPEC = {PA_SAMPLE_S16LE, RATE, 1};
    static const pa_buffer_attr ATTRIBUTES = {.maxlength = BACKLOG,
                                              .tlength = UINT32_MAX,
                                              .prebuf = UINT32_MAX,
                                              .minreq = UINT32_MAX,
                                              .fragsize = FRAGMENT};
    pa_context *pulse = recording->all->pulse;

    clock_timer_set(&recording->retry, NEVER);
    if (!pulse || recording->stream)
        return;
    recording->stream = pa_stream_new(pulse, recording->title, &SPEC, NULL);
    if (!recording->stream) {
        stream_lost(recording, pa_strerror(pa_context_errno(pulse)));
        return;
    }
    pa_stream_set_state_callback(recording->stream, stream_state, recording);
    pa_stream_set_read_callback(recording->stream, stream_readable, recording);
    /* DONT_MOVE: when the microphone is unplugged the server would give us another source, which
     * may be the monitor of the loudspeakers. */
    if (pa_stream_connect_record(recording->stream, recording->name, &ATTRIBUTES,
                                 PA_STREAM_ADJUST_LATENCY | PA_STREAM_DONT_MOVE) < 0 &&
        recording->stream)
        stream_lost(recording, pa_strerror(pa_context_errno(pulse)));
}

static void try_again(void *context)
{
    stream_open(context);
}

struct recording *recordings_join(struct recordings *all, const char *name)
{
    struct recording *recording;

    for (recording = all->first; recording; recording = recording->next) {
        if (!strcmp(recording->name, name)) {
            recording->listeners++;
            return recording;
        }
    }
    recording = calloc(1, sizeof *recording);
    if (!recording)
        return NULL;
    recording->all = all;
    recording->listeners = 1;
    snprintf(recording->name, sizeof recording->name, "%s", name);
    strcpy(recording->title, "lent microphone");
    clock_timer_init(&recording->retry, all->loop, try_again, recording);
    recording->next = all->first;
    all->first = recording;
    /* Its name is given first. */
    clock_timer_set(&recording->retry, clock_now());
    return recording;
}

bool recording_leave(struct recording *recording)
{
    struct recording **place = &recording->all->first;

    if (--recording->listeners)
        return true;
    while (*place != recording)
        place = &(*place)->next;
    *place = recording->next;
    stream_close(recording);
    clock_timer_free(&recording->retry);
    free(recording);
    return false;
}

void recording_rename(struct recording *recording, const char *title)
{
    if (!strcmp(recording->title, title))
        return;
    snprintf(recording->title, sizeof recording->title, "%s", title);
    tell_title(recording);
}

const char *recording_name(const struct recording *recording)
{
    return recording->name;
}

bool recording_is_live(const struct recording *recording)
{
    return recording->is_live;
}

/* --- All --- */

struct recordings *recordings_new(pa_mainloop_api *loop, const struct recordings_events *events,
                                  void *context)
{
    struct recordings *all = calloc(1, sizeof *all);

    if (!all)
        return NULL;
    all->loop = loop;
    all->events = events;
    all->context = context;
    return all;
}

void recordings_use(struct recordings *all, pa_context *pulse)
{
    all->pulse = pulse;
    for (struct recording *each = all->first; each; each = each->next) {
        clock_timer_set(&each->retry, NEVER);
        stream_close(each);
    }
}

void recordings_try(struct recordings *all)
{
    for (struct recording *each = all->first; each; each = each->next)
        if (!each->stream)
            stream_open(each);
}

void recordings_free(struct recordings *all)
{
    while (all->first) {
        all->first->listeners = 1;
        recording_leave(all->first);
    }
    free(all);
}
