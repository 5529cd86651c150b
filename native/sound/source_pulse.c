#include "source_pulse.h"

#include "clock.h"
#include "log.h"
#include "server.h"
#include "text.h"
#include "timing.h"

#include <pulse/error.h>
#include <pulse/introspect.h>
#include <pulse/proplist.h>
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
/* pipewire-pulse (0.3.65) still names an unplugged source as the default when it says that sources
 * have changed, and says nothing when it names another: it is asked again, some times. */
#define ASK_AGAIN_MS 250
#define ASK_AGAIN_TIMES 20
/* A longer name than any that servers make is nobody's. */
#define NAME_MAX_BYTES 255u
/* One is the user's choice. */
#define SOURCES_MAX (LINK_DEVICES_MAX - 1)

struct list {
    unsigned count;
    char names[SOURCES_MAX][NAME_MAX_BYTES + 1];
    struct link_device devices[LINK_DEVICES_MAX]; /* the user's choice last */
    unsigned devices_count;
};

struct recording {
    struct recording *next;
    struct sources *sources;
    char name[NAME_MAX_BYTES + 1];
    char title[LINK_LINE_MAX + 1];
    unsigned listeners;
    pa_stream *stream;
    int16_t gathered[GATHERED_MAX];
    size_t gathered_count;
    bool is_live;
    struct clock_timer retry;
};

struct sources {
    pa_mainloop_api *loop;
    const struct sources_events *events;
    void *context;
    pa_context *pulse;
    struct list now, next; /* next: while the server tells */
    char default_name[NAME_MAX_BYTES + 1];
    bool is_looking, is_stale, is_known, is_cut;
    bool is_default_seen; /* while the server tells: the default is one of its sources */
    unsigned asked_again;
    struct clock_timer again;
    struct recording *recordings;
};

static void stream_open(struct recording *recording);
static void look(struct sources *sources);

/* --- The list --- */

static bool is_microphone(const pa_source_info *info)
{
    return info->name && info->monitor_of_sink == PA_INVALID_INDEX &&
           strlen(info->name) <= NAME_MAX_BYTES &&
           strncmp(info->name, BORROWED_PREFIX, strlen(BORROWED_PREFIX)) != 0;
}

/* What tells this piece of hardware from another: where it is plugged in, what it says it is, and
 * which of its recording devices this is (a laptop's own microphone and its headset's are of one
 * card). A source without hardware is what it is called. */
static void identify(char *identity, const pa_source_info *info)
{
    static const char *const KEYS[] = {PA_PROP_DEVICE_BUS_PATH, PA_PROP_DEVICE_VENDOR_ID,
                                       PA_PROP_DEVICE_PRODUCT_ID, PA_PROP_DEVICE_SERIAL,
                                       "alsa.device"};
    const size_t count = sizeof KEYS / sizeof *KEYS;
    char all[1200] = "";
    size_t used = 0;
    bool is_hardware = false;

    for (size_t i = 0; i < count; i++) {
        const char *value = info->proplist ? pa_proplist_gets(info->proplist, KEYS[i]) : NULL;

        /* The number alone is the same for the first device of every card. */
        is_hardware |= value && i < count - 1;
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%.200s", i ? ":" : "hw:",
                                 value ? value : "");
    }
    text_to_word(identity, LINK_IDENTITY_MAX, is_hardware ? all : info->name, ":._-");
}

static void add_device(struct list *list, const pa_source_info *info)
{
    struct link_device *device = &list->devices[list->count];
    /* The id of the user's choice is not free. */
    const char *name = strcmp(info->name, LINK_DEFAULT_DEVICE) ? info->name : "mic ";

    strcpy(list->names[list->count], info->name);
    text_to_word(device->id, LINK_DEVICE_MAX, name, "._-");
    identify(device->identity, info);
    text_to_line(device->description, LINK_DESCRIPTION_MAX,
                 info->description ? info->description : info->name);
    device->is_default = false;
    for (unsigned i = 0; i < list->count; i++)
        if (!strcmp(list->devices[i].id, device->id))
            return; /* the server has two of one name: the first is meant */
    list->count++;
}

/* The user's choice is there as long as there is a microphone to choose. */
static void add_choice(struct list *list, const char *default_name)
{
    struct link_device *choice = &list->devices[list->count];

    list->devices_count = list->count;
    if (!list->count)
        return;
    *choice = (struct link_device){.id = LINK_DEFAULT_DEVICE,
                                   .identity = LINK_DEFAULT_IDENTITY,
                                   .description = "No microphone is the default source",
                                   .is_default = true};
    for (unsigned i = 0; i < list->count; i++) {
        if (strcmp(list->names[i], default_name) != 0)
            continue;
        list->devices[i].is_default = true;
        strcpy(choice->description, list->devices[i].description);
    }
    list->devices_count++;
}

static void looked(struct sources *sources)
{
    bool is_new;

    add_choice(&sources->next, sources->default_name);
    /* Unused parts are zero in both. */
    is_new = !sources->is_known || memcmp(&sources->now, &sources->next, sizeof sources->now) != 0;
    sources->now = sources->next;
    sources->is_known = true;
    if (is_new)
        sources->events->changed(sources->context);
    /* What could not be recorded may be there now. */
    for (struct recording *each = sources->recordings; each; each = each->next)
        if (!each->stream)
            stream_open(each);
}

static void listed(pa_context *pulse, const pa_source_info *info, int end, void *context)
{
    struct sources *sources = context;

    if (pulse != sources->pulse)
        return;
    if (!end) {
        sources->is_default_seen |= info->name && !strcmp(info->name, sources->default_name);
        if (!is_microphone(info))
            return;
        if (sources->next.count < SOURCES_MAX)
            add_device(&sources->next, info);
        else if (!sources->is_cut)
            log_warning("more than %u microphones: the others are not announced", SOURCES_MAX);
        sources->is_cut |= sources->next.count == SOURCES_MAX;
        return;
    }
    sources->is_looking = false;
    /* A list that failed says nothing. */
    if (end > 0 && !sources->is_stale)
        looked(sources);
    if (sources->is_stale)
        look(sources);
    else if (!sources->is_default_seen && *sources->default_name &&
             sources->asked_again++ < ASK_AGAIN_TIMES)
        clock_timer_set(&sources->again, clock_now() + ASK_AGAIN_MS);
}

static void list_sources(struct sources *sources)
{
    pa_operation *operation;

    memset(&sources->next, 0, sizeof sources->next);
    sources->is_default_seen = false;
    operation = pa_context_get_source_info_list(sources->pulse, listed, sources);
    if (operation)
        pa_operation_unref(operation);
    else
        sources->is_looking = false;
}

static void introduced(pa_context *pulse, const pa_server_info *info, void *context)
{
    struct sources *sources = context;

    if (pulse != sources->pulse)
        return;
    if (info)
        snprintf(sources->default_name, sizeof sources->default_name, "%s",
                 info->default_source_name ? info->default_source_name : "");
    list_sources(sources);
}

/* One question at a time; what changes meanwhile makes its answer stale. */
static void look(struct sources *sources)
{
    pa_operation *operation;

    sources->is_looking = true;
    sources->is_stale = false;
    operation = pa_context_get_server_info(sources->pulse, introduced, sources);
    if (operation)
        pa_operation_unref(operation);
    else
        sources->is_looking = false;
}

static void look_again(void *context)
{
    struct sources *sources = context;

    if (sources->pulse && !sources->is_looking)
        look(sources);
}

void sources_look(struct sources *sources)
{
    if (!sources->pulse)
        return;
    sources->asked_again = 0;
    if (sources->is_looking)
        sources->is_stale = true;
    else
        look(sources);
}

const struct link_device *sources_list(const struct sources *sources, unsigned *count)
{
    *count = sources->now.devices_count;
    return sources->now.devices;
}

bool sources_has(const struct sources *sources, const char *device, const char *identity)
{
    const struct list *list = &sources->now;

    for (unsigned i = 0; i < list->devices_count; i++)
        if (!strcmp(list->devices[i].id, device))
            return !strcmp(list->devices[i].identity, identity);
    return false;
}

const char *sources_name(const struct sources *sources, const char *device)
{
    const struct list *list = &sources->now;
    bool is_choice = !strcmp(device, LINK_DEFAULT_DEVICE);

    for (unsigned i = 0; i < list->count; i++)
        if (is_choice ? list->devices[i].is_default : !strcmp(list->devices[i].id, device))
            return list->names[i];
    return NULL;
}

/* --- Recordings --- */

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
    struct sources *sources = recording->sources;
    bool was_live = recording->is_live;

    log_detail("cannot record %s: %s", recording->name, why);
    stream_close(recording);
    if (sources->pulse)
        clock_timer_set(&recording->retry, clock_now() + RETRY_MS);
    if (was_live)
        sources->events->turned(sources->context, recording);
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
        recording->sources->events->turned(recording->sources->context, recording);
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
    struct sources *sources = recording->sources;
    size_t count = recording->gathered_count;

    recording->gathered_count = 0;
    sources->events->heard(sources->context, recording, recording->gathered, count);
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
    pa_context *pulse = recording->sources->pulse;

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

struct recording *recording_join(struct sources *sources, const char *name)
{
    struct recording *recording;

    for (recording = sources->recordings; recording; recording = recording->next) {
        if (!strcmp(recording->name, name)) {
            recording->listeners++;
            return recording;
        }
    }
    recording = calloc(1, sizeof *recording);
    if (!recording)
        return NULL;
    recording->sources = sources;
    recording->listeners = 1;
    snprintf(recording->name, sizeof recording->name, "%s", name);
    strcpy(recording->title, "lent microphone");
    clock_timer_init(&recording->retry, sources->loop, try_again, recording);
    recording->next = sources->recordings;
    sources->recordings = recording;
    /* Its name is given first. */
    clock_timer_set(&recording->retry, clock_now());
    return recording;
}

bool recording_leave(struct recording *recording)
{
    struct recording **place = &recording->sources->recordings;

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

struct sources *sources_new(pa_mainloop_api *loop, const struct sources_events *events,
                            void *context)
{
    struct sources *sources = calloc(1, sizeof *sources);

    if (!sources)
        return NULL;
    sources->loop = loop;
    sources->events = events;
    sources->context = context;
    clock_timer_init(&sources->again, loop, look_again, sources);
    return sources;
}

void sources_use(struct sources *sources, pa_context *pulse)
{
    sources->pulse = pulse;
    sources->is_looking = sources->is_stale = false;
    clock_timer_set(&sources->again, NEVER);
    for (struct recording *each = sources->recordings; each; each = each->next) {
        clock_timer_set(&each->retry, NEVER);
        stream_close(each);
    }
    sources->is_known = false; /* the first list of a server is told in any case */
    sources_look(sources);
}

void sources_forget(struct sources *sources)
{
    memset(&sources->now, 0, sizeof sources->now);
    sources->is_known = false;
}

void sources_free(struct sources *sources)
{
    while (sources->recordings) {
        struct recording *recording = sources->recordings;

        recording->listeners = 1;
        recording_leave(recording);
    }
    clock_timer_free(&sources->again);
    free(sources);
}
