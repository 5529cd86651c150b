#include "borrowed.h"

#include "clock.h"
#include "log.h"
#include "target.h"
#include "timing.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Samples that are taken in a second, and at once: twice what a microphone gives. A source that
 * sends more has to wait, so that it costs no more of this machine. A frame counts as a
 * millisecond at least. */
#define SAMPLES_A_SECOND (2 * FRAME_SILENCE_MAX)
#define SAMPLES_AT_ONCE FRAME_SILENCE_MAX
#define SAMPLES_OF_FRAME 48
/* A frame of the recording before START may be on its way still. Its counter tells: it is further
 * than a source can be that began at START. The first frames of that one may be lost, and what the
 * source's server had collected comes at once: so twice the time that has passed, which any source
 * gets under sooner or later, and a tenth of a second. */
#define COUNTED_A_MS (SAMPLES_A_SECOND / 1000)
#define COUNTED_AT_ONCE 4800
/* START and STOP that are said in a second: programs that try out a microphone do it in storms. */
#define WORDS_A_SECOND 10
#define WORDS_AT_ONCE 20
/* A source that does not read what it is told. */
#define UNHEARD_MS 100
/* A target that the server takes away while it runs is offered again, for so long. */
#define RETRY_MS 500
#define RETRY_MS_ALL 10000

struct borrowed {
    struct host *host;
    uint32_t id;
    char vm[LINK_VM_MAX + 1];
    char node_name[LINK_VM_MAX + LINK_DEVICE_MAX + 16];
    char description[LINK_DESCRIPTION_MAX + LINK_VM_MAX + 32];
    bool is_over, is_told_ready;
    bool is_offered; /* the target is ready */
    const struct target_backend *backend;
    struct target *target;
    char why[LINK_LINE_MAX + 1]; /* the target has failed and waits to be destroyed */
    int64_t again, failing_since; /* NEVER: it is not failing */
    bool is_recorded; /* here */
    bool is_started;  /* and that is what the source was told */
    bool is_current;  /* what comes is of the recording that START began */
    int64_t started;  /* when START was said */
    int fd;
    pa_io_event *io;
    struct inbox in;
    struct report report;
    struct bucket samples, words;
    int64_t unheard; /* when to say it again, as the socket was full */
    struct clock_timer timer;
};

static void update(struct borrowed *borrowed);

/* --- From the source --- */

/* The samples may not be aligned where they are. */
static void feed(struct borrowed *borrowed, const struct frame *frame)
{
    int16_t samples[FRAME_AUDIO_MAX / sizeof(int16_t)];

    memcpy(samples, frame->samples, frame->count * sizeof *samples);
    borrowed->backend->feed(borrowed->target, samples, frame->count);
}

/* Whether a frame is of the recording that START began; from the first such one on all are. */
static bool is_current(struct borrowed *borrowed, const struct frame *frame, int64_t now)
{
    borrowed->is_current |=
        frame->counter <= COUNTED_AT_ONCE + (now - borrowed->started) * COUNTED_A_MS;
    return borrowed->is_current;
}

static const char *take_frames(struct borrowed *borrowed)
{
    struct frame frame;
    int64_t taken, now = clock_now();

    while ((taken = inbox_take(&borrowed->in, FRAME_FROM_SOURCE, &frame)) > 0) {
        bucket_take(&borrowed->samples,
                    frame.count < SAMPLES_OF_FRAME ? SAMPLES_OF_FRAME : frame.count, now);
        /* Nobody records: what comes now is from before STOP, or was not asked for. */
        if (!borrowed->target || !borrowed->is_started || *borrowed->why)
            continue;
        if (!is_current(borrowed, &frame, now))
            continue;
        if (frame.type == FRAME_AUDIO)
            feed(borrowed, &frame);
        else
            borrowed->backend->silence(borrowed->target, frame.count);
    }
    return taken == FRAME_MALFORMED ? CHANNEL_MALFORMED : NULL;
}

static void readable(pa_mainloop_api *loop, pa_io_event *event, int fd, pa_io_event_flags_t flags,
                     void *context)
{
    struct borrowed *borrowed = context;
    const char *why = inbox_read(&borrowed->in, fd);

    (void)loop;
    (void)event;
    (void)flags;
    if (!why)
        why = take_frames(borrowed);
    if (why)
        borrowed_end(borrowed, why);
    else if (bucket_due(&borrowed->samples, clock_now()) > clock_now())
        update(borrowed);
}

/* --- To the source --- */

/* Tells it whether somebody records, if that is news; the last word is always said. */
static void say(struct borrowed *borrowed, int64_t now)
{
    struct frame frame = {.type = borrowed->is_recorded ? FRAME_START : FRAME_STOP};
    uint8_t bytes[FRAME_MAX];
    size_t count = frame_build(&frame, bytes);

    if (borrowed->is_recorded == borrowed->is_started ||
        bucket_due(&borrowed->words, now) > now || borrowed->unheard > now)
        return;
    borrowed->unheard = 0;
    /* Eight bytes go whole or not at all. */
    if (send(borrowed->fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)count) {
        borrowed->unheard = now + UNHEARD_MS;
        return;
    }
    bucket_take(&borrowed->words, 1, now);
    borrowed->is_started = borrowed->is_recorded;
    borrowed->is_current = false;
    borrowed->started = now;
    if (borrowed->target && !*borrowed->why)
        borrowed->backend->flush(borrowed->target);
}

/* --- The target --- */

/* Programs look in the server's list: one that finds nothing there records something else. */
void borrowed_listed(struct borrowed *borrowed)
{
    if (!borrowed->is_offered || borrowed->is_told_ready ||
        !sources_offer(borrowed->host->sources, borrowed->node_name))
        return;
    host_tell(borrowed->host, LINK_READY, borrowed->id, false, "");
    borrowed->is_told_ready = true;
}

static void ready(void *context)
{
    struct borrowed *borrowed = context;

    borrowed->failing_since = NEVER;
    borrowed->is_offered = true;
    sources_look(borrowed->host->sources);
}

static void recorded(void *context, bool is_recorded)
{
    struct borrowed *borrowed = context;

    borrowed->is_recorded = is_recorded;
    update(borrowed);
}

/* It may not be destroyed here. */
static void failed(void *context, const char *why)
{
    struct borrowed *borrowed = context;

    snprintf(borrowed->why, sizeof borrowed->why, "%s", *why ? why : "it failed");
    clock_timer_set(&borrowed->timer, clock_now());
}

static const struct target_events EVENTS = {ready, recorded, failed};

static void withdraw(struct borrowed *borrowed)
{
    if (borrowed->target)
        borrowed->backend->destroy(borrowed->target);
    borrowed->target = NULL;
    borrowed->is_offered = borrowed->is_recorded = false;
    *borrowed->why = '\0';
}

static void offer(struct borrowed *borrowed)
{
    struct host *host = borrowed->host;
    pa_context *pulse = server_context(host->server);

    borrowed->again = NEVER;
    if (!pulse || borrowed->target || borrowed->is_over)
        return;
    borrowed->backend = server_is_pipewire(host->server) ? &target_pipewire : &target_pulse;
    borrowed->target = borrowed->backend->create(host->loop, pulse, borrowed->node_name,
                                                 borrowed->description, &EVENTS, borrowed);
    if (!borrowed->target)
        borrowed_end(borrowed, "out of memory");
}

static void tidy_up(struct borrowed *borrowed, int64_t now)
{
    char why[sizeof borrowed->why];

    strcpy(why, borrowed->why);
    withdraw(borrowed);
    log_detail("the microphone of %s: %s", borrowed->vm, why);
    if (borrowed->failing_since == NEVER)
        borrowed->failing_since = now;
    if (!borrowed->is_told_ready || now - borrowed->failing_since >= RETRY_MS_ALL)
        borrowed_end(borrowed, why);
    else
        borrowed->again = now + RETRY_MS;
}

/* --- What it has to do --- */

static void update(struct borrowed *borrowed)
{
    struct host *host = borrowed->host;
    int64_t now = clock_now(), due, reads;

    if (borrowed->is_over)
        return;
    say(borrowed, now);
    if (report_tell(&borrowed->report, borrowed->is_recorded, now))
        host_tell(host, LINK_LISTENING, borrowed->id, borrowed->is_recorded, "");

    reads = bucket_due(&borrowed->samples, now);
    host->loop->io_enable(borrowed->io, reads > now ? PA_IO_EVENT_NULL : PA_IO_EVENT_INPUT);
    due = sooner(reads > now ? reads : NEVER, borrowed->again);
    due = sooner(due, report_due(&borrowed->report, borrowed->is_recorded));
    if (borrowed->is_recorded != borrowed->is_started) {
        int64_t word = bucket_due(&borrowed->words, now);

        due = sooner(due, borrowed->unheard > word ? borrowed->unheard : word);
    }
    if (*borrowed->why)
        due = now;
    clock_timer_set(&borrowed->timer, due);
}

static void timed(void *context)
{
    struct borrowed *borrowed = context;
    int64_t now = clock_now();

    if (*borrowed->why)
        tidy_up(borrowed, now);
    if (borrowed->again <= now)
        offer(borrowed);
    update(borrowed);
}

void borrowed_server_lost(struct borrowed *borrowed)
{
    withdraw(borrowed);
    borrowed->again = NEVER;
    borrowed->failing_since = NEVER;
    update(borrowed);
}

void borrowed_server_up(struct borrowed *borrowed)
{
    offer(borrowed);
}

void borrowed_end(struct borrowed *borrowed, const char *why)
{
    struct host *host = borrowed->host;

    if (borrowed->is_over)
        return;
    log_detail("the microphone of %s: over: %s", borrowed->vm, *why ? why : "closed");
    borrowed->is_over = true;
    withdraw(borrowed);
    clock_timer_set(&borrowed->timer, NEVER);
    host->loop->io_enable(borrowed->io, PA_IO_EVENT_NULL);
    host_tell(host, *why && !borrowed->is_told_ready ? LINK_FAILED : LINK_ENDED, borrowed->id,
              false, why);
    host->over(host->context);
}

/* What programs call it, and people. */
static void name(struct borrowed *borrowed, const struct link_message *message)
{
    bool is_choice = !strcmp(message->device, LINK_DEFAULT_DEVICE);

    snprintf(borrowed->node_name, sizeof borrowed->node_name, BORROWED_PREFIX "%s%s%s", message->vm,
             is_choice ? "" : ".", is_choice ? "" : message->device);
    if (is_choice || !*message->description)
        snprintf(borrowed->description, sizeof borrowed->description, "Microphone of %s",
                 message->vm);
    else
        snprintf(borrowed->description, sizeof borrowed->description, "%s (%s)",
                 message->description, message->vm);
}

struct borrowed *borrowed_new(struct host *host, const struct link_message *message, int fd)
{
    struct borrowed *borrowed = calloc(1, sizeof *borrowed);
    int64_t now = clock_now();

    if (!borrowed)
        return NULL;
    borrowed->host = host;
    borrowed->id = message->id;
    borrowed->fd = fd;
    borrowed->again = borrowed->failing_since = NEVER;
    borrowed->samples = (struct bucket){.a_second = SAMPLES_A_SECOND, .at_once = SAMPLES_AT_ONCE,
                                        .seen = now};
    borrowed->words = (struct bucket){.a_second = WORDS_A_SECOND, .at_once = WORDS_AT_ONCE,
                                      .seen = now};
    strcpy(borrowed->vm, message->vm);
    name(borrowed, message);
    clock_timer_init(&borrowed->timer, host->loop, timed, borrowed);
    borrowed->io = host->loop->io_new(host->loop, fd, PA_IO_EVENT_INPUT, readable, borrowed);
    offer(borrowed);
    return borrowed;
}

void borrowed_free(struct borrowed *borrowed)
{
    borrowed->is_over = true;
    withdraw(borrowed);
    clock_timer_free(&borrowed->timer);
    borrowed->host->loop->io_free(borrowed->io);
    close(borrowed->fd);
    free(borrowed);
}

uint32_t borrowed_id(const struct borrowed *borrowed)
{
    return borrowed->id;
}

bool borrowed_is_over(const struct borrowed *borrowed)
{
    return borrowed->is_over;
}
