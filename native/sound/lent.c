#include "lent.h"

#include "clock.h"
#include "log.h"
#include "timing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What the target says is read so often in a second: START and STOP need no more. What comes
 * meanwhile is taken together, and the last word of it counts. */
#define READS_A_SECOND 10
#define READS_AT_ONCE 20
/* A muted target, or one whose microphone is away for a moment, gets silence in such steps. */
#define SILENCE_MS 20
#define SAMPLES_A_MS 48
#define SAMPLE sizeof(int16_t)
#define SAMPLES_MAX (FRAME_AUDIO_MAX / SAMPLE)

struct lent {
    struct host *host;
    uint32_t id;
    char device[LINK_DEVICE_MAX + 1], identity[LINK_IDENTITY_MAX + 1], vm[LINK_VM_MAX + 1];
    bool is_muted, is_over;
    int fd;
    pa_io_event *io;
    struct inbox in;
    struct gate gate;
    struct report report;
    struct bucket reads;
    struct recording *recording;
    uint32_t counter;   /* of samples since START, wraps */
    int64_t silent_from; /* while there is silence: what has no samples yet */
    uint8_t rest[FRAME_MAX]; /* of a frame that the socket took a part of */
    size_t rest_count;
    struct clock_timer timer;
};

static const char *take_frames(struct lent *lent)
{
    struct frame frame;
    int64_t taken, now = clock_now();

    while ((taken = inbox_take(&lent->in, FRAME_FROM_TARGET, &frame)) > 0) {
        if (frame.type == FRAME_START)
            lent->counter = 0;
        gate_want(&lent->gate, frame.type == FRAME_START, now);
    }
    return taken == FRAME_MALFORMED ? CHANNEL_MALFORMED : NULL;
}

static void readable(pa_mainloop_api *loop, pa_io_event *event, int fd, pa_io_event_flags_t flags,
                     void *context)
{
    struct lent *lent = context;
    const char *why = inbox_read(&lent->in, fd);

    (void)loop;
    (void)event;
    (void)flags;
    bucket_take(&lent->reads, 1, clock_now());
    if (!why)
        why = take_frames(lent);
    if (why)
        lent_end(lent, why);
    else
        lent_update(lent);
}

/* --- To the target --- */

/* A frame goes out whole: what the socket does not take is lost for this listener alone. */
static void send_frame(struct lent *lent, const struct frame *frame)
{
    uint8_t bytes[FRAME_MAX];
    size_t count;
    ssize_t sent;

    if (lent->rest_count) {
        sent = send(lent->fd, lent->rest, lent->rest_count, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            lent->rest_count -= (size_t)sent;
            memmove(lent->rest, lent->rest + sent, lent->rest_count);
        }
        if (lent->rest_count)
            return;
    }
    count = frame_build(frame, bytes);
    sent = send(lent->fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0 && (size_t)sent < count) {
        lent->rest_count = count - (size_t)sent;
        memcpy(lent->rest, bytes + sent, lent->rest_count);
    }
    /* A socket that is closed is seen when it is read. */
}

static void send_silence(struct lent *lent, int64_t now)
{
    int64_t count = (now - lent->silent_from) * SAMPLES_A_MS;
    struct frame frame = {.type = FRAME_SILENCE, .counter = lent->counter};

    if (count <= 0)
        return;
    frame.count = count < FRAME_SILENCE_MAX ? (uint32_t)count : FRAME_SILENCE_MAX;
    send_frame(lent, &frame);
    lent->counter += frame.count;
    lent->silent_from = now;
}

void lent_hear(struct lent *lent, const int16_t *samples, size_t count)
{
    if (lent->is_over || lent->is_muted || !lent->gate.is_wanted)
        return;
    while (count) {
        size_t part = count < SAMPLES_MAX ? count : SAMPLES_MAX;
        struct frame frame = {.type = FRAME_AUDIO,
                              .counter = lent->counter,
                              .count = (uint32_t)part,
                              .samples = (const uint8_t *)samples};

        send_frame(lent, &frame);
        lent->counter += (uint32_t)part;
        samples += part;
        count -= part;
    }
}

/* --- What it has to do --- */

static void listen_to(struct lent *lent, const char *name)
{
    struct host *host = lent->host;
    struct recording *before = lent->recording;

    if (before && name && !strcmp(recording_name(before), name))
        return;
    lent->recording = name ? recordings_join(host->recordings, name) : NULL;
    if (lent->recording)
        host->listeners_changed(host->context, lent->recording);
    if (before && recording_leave(before))
        host->listeners_changed(host->context, before);
}

void lent_update(struct lent *lent)
{
    struct host *host = lent->host;
    int64_t now = clock_now(), due = NEVER;
    bool is_heard, is_silent, is_paused;

    if (lent->is_over)
        return;
    gate_tick(&lent->gate, now);
    is_heard = lent->gate.is_open && !lent->is_muted;
    listen_to(lent, is_heard ? sources_name(host->sources, lent->device) : NULL);
    if (report_tell(&lent->report, lent->gate.is_open, now))
        host_tell(host, LINK_LISTENING, lent->id, lent->gate.is_open, "");

    is_silent = lent->gate.is_wanted && !(lent->recording && recording_is_live(lent->recording));
    if (is_silent && lent->silent_from == NEVER)
        lent->silent_from = now;
    if (is_silent)
        send_silence(lent, now);
    else
        lent->silent_from = NEVER;

    is_paused = bucket_due(&lent->reads, now) > now;
    host->loop->io_enable(lent->io, is_paused ? PA_IO_EVENT_NULL : PA_IO_EVENT_INPUT);
    if (is_paused)
        due = bucket_due(&lent->reads, now);
    if (is_silent)
        due = sooner(due, now + SILENCE_MS);
    due = sooner(due, sooner(gate_due(&lent->gate), report_due(&lent->report, lent->gate.is_open)));
    clock_timer_set(&lent->timer, due);
}

static void timed(void *context)
{
    lent_update(context);
}

void lent_mute(struct lent *lent, bool is_muted)
{
    if (lent->is_over)
        return;
    lent->is_muted = is_muted;
    lent_update(lent);
    host_tell(lent->host, LINK_READY, lent->id, false, "");
}

bool lent_is_there(const struct lent *lent)
{
    return sources_has(lent->host->sources, lent->device, lent->identity);
}

void lent_end(struct lent *lent, const char *why)
{
    struct host *host = lent->host;

    if (lent->is_over)
        return;
    log_detail("lent to %s: over: %s", lent->vm, *why ? why : "closed");
    lent->is_over = true;
    listen_to(lent, NULL);
    clock_timer_set(&lent->timer, NEVER);
    host->loop->io_enable(lent->io, PA_IO_EVENT_NULL);
    host_tell(host, LINK_ENDED, lent->id, false, why);
    host->over(host->context);
}

struct lent *lent_new(struct host *host, const struct link_message *message, int fd)
{
    struct lent *lent = calloc(1, sizeof *lent);

    if (!lent)
        return NULL;
    lent->host = host;
    lent->id = message->id;
    strcpy(lent->device, message->device);
    strcpy(lent->identity, message->identity);
    strcpy(lent->vm, message->vm);
    lent->is_muted = message->flag;
    lent->fd = fd;
    lent->silent_from = NEVER;
    lent->reads = (struct bucket){.a_second = READS_A_SECOND, .at_once = READS_AT_ONCE,
                                  .seen = clock_now()};
    clock_timer_init(&lent->timer, host->loop, timed, lent);
    lent->io = host->loop->io_new(host->loop, fd, PA_IO_EVENT_INPUT, readable, lent);
    host_tell(host, LINK_READY, lent->id, false, "");
    return lent;
}

void lent_free(struct lent *lent)
{
    lent->is_over = true;
    listen_to(lent, NULL);
    clock_timer_free(&lent->timer);
    lent->host->loop->io_free(lent->io);
    close(lent->fd);
    free(lent);
}

uint32_t lent_id(const struct lent *lent)
{
    return lent->id;
}

const char *lent_vm(const struct lent *lent)
{
    return lent->vm;
}

bool lent_is_over(const struct lent *lent)
{
    return lent->is_over;
}

const struct recording *lent_recording(const struct lent *lent)
{
    return lent->recording;
}
