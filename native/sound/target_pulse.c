/*
 * A borrowed microphone in PulseAudio: module-pipe-source, which reads samples from a FIFO. What
 * writes there is its clock, so no rate has to be matched.
 */
#include "target_pulse.h"

#include "clock.h"
#include "log.h"
#include "server.h"
#include "target.h"
#include "text.h"
#include "timing.h"

#include <errno.h>
#include <fcntl.h>
#include <pulse/error.h>
#include <pulse/introspect.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODULE "module-pipe-source"
#define FIFO_PREFIX "pedos-sound."
#define SAMPLE sizeof(int16_t)
/* What may wait in the FIFO: 170 ms. Linux's default is 680 ms, too much to hear late. */
#define FIFO_SIZE 16384
/* A write of at most PIPE_BUF is done whole or not at all. */
#define SAMPLES_AT_ONCE 960u
/* A source that gives nothing stalls the programs that record it. When nothing has come for
 * STALLED_MS there is silence, in steps. */
#define STALLED_MS 60
#define STEP_MS 20

struct target {
    struct target *next;
    pa_mainloop_api *loop;
    pa_context *server;
    const struct target_events *events;
    void *context;
    char name[128], path[256];
    int fifo;             /* -1: not open */
    uint32_t module;      /* PA_INVALID_INDEX: not loaded */
    bool is_destroyed, is_ready;
    bool is_looking, is_stale, is_recorded;
    unsigned pending;     /* operations whose callbacks know this */
    struct clock_timer stall;
};

/* All there are, as the server does not say whose streams have changed. */
static struct target *targets;

static void release(struct target *target);

/* Done, or cancelled with the connection; a callback of its own has been called before. */
static void operation_changed(pa_operation *operation, void *context)
{
    struct target *target = context;

    if (pa_operation_get_state(operation) == PA_OPERATION_RUNNING)
        return;
    target->pending--;
    if (target->is_destroyed && !target->pending)
        release(target);
}

/* Returns whether it was begun. */
static bool begin(struct target *target, pa_operation *operation)
{
    if (!operation)
        return false;
    target->pending++;
    pa_operation_set_state_callback(operation, operation_changed, target);
    pa_operation_unref(operation);
    return true;
}

static const char *folder(void)
{
    const char *path = getenv("XDG_RUNTIME_DIR");

    return path && *path ? path : "/run";
}

/* --- Sound --- */

static void put(struct target *target, const int16_t *samples, size_t count)
{
    while (count && target->fifo != -1) {
        size_t part = count < SAMPLES_AT_ONCE ? count : SAMPLES_AT_ONCE;

        /* A full FIFO: nobody reads, and nobody misses it. */
        if (write(target->fifo, samples, part * SAMPLE) < 0)
            return;
        samples += part;
        count -= part;
    }
}

static void put_silence(struct target *target, size_t count)
{
    static const int16_t NOTHING[SAMPLES_AT_ONCE];

    while (count && target->fifo != -1) {
        size_t part = count < SAMPLES_AT_ONCE ? count : SAMPLES_AT_ONCE;

        put(target, NOTHING, part);
        count -= part;
    }
}

static void expect_more(struct target *target)
{
    clock_timer_set(&target->stall, target->is_recorded ? clock_now() + STALLED_MS : NEVER);
}

static void stalled(void *context)
{
    struct target *target = context;

    put_silence(target, TARGET_RATE / 1000 * STEP_MS);
    clock_timer_set(&target->stall, clock_now() + STEP_MS);
}

static void feed(struct target *target, const int16_t *samples, size_t count)
{
    put(target, samples, count);
    expect_more(target);
}

static void silence(struct target *target, size_t count)
{
    put_silence(target, count < TARGET_RATE ? count : TARGET_RATE);
    expect_more(target);
}

static void flush(struct target *target)
{
    uint8_t bytes[4096];

    for (int left = FIFO_SIZE; target->fifo != -1 && left > 0; left -= (int)sizeof bytes)
        if (read(target->fifo, bytes, sizeof bytes) <= 0)
            return;
}

/* --- Whether somebody records --- */

static void look(struct target *target);

/* Nobody records a source that is not there. Its last event. */
static void lost(struct target *target)
{
    target->is_ready = target->is_recorded = false;
    expect_more(target);
    target->events->failed(target->context, "the sound server has taken its source away");
}

static void looked(pa_context *server, const pa_source_info *info, int end, void *context)
{
    struct target *target = context;
    bool is_recorded;

    if (target->is_destroyed)
        return;
    if (end) {
        target->is_looking = false;
        if (target->is_stale)
            look(target);
        else if (end < 0 && pa_context_errno(server) == PA_ERR_NOENTITY)
            lost(target);
        return;
    }
    /* Running: at least one stream that is not paused. */
    is_recorded = info->state == PA_SOURCE_RUNNING;
    /* Also if it is stale: at a STOP each millisecond counts, and the next answer is on its way. */
    if (is_recorded == target->is_recorded)
        return;
    target->is_recorded = is_recorded;
    expect_more(target);
    target->events->recorded(target->context, is_recorded);
}

static void look(struct target *target)
{
    target->is_stale = false;
    target->is_looking = begin(
        target, pa_context_get_source_info_by_name(target->server, target->name, looked, target));
}

void target_pulse_look(void)
{
    for (struct target *target = targets; target; target = target->next) {
        if (!target->is_ready)
            continue;
        if (target->is_looking)
            target->is_stale = true;
        else
            look(target);
    }
}

/* --- Its life --- */

static void unload(pa_context *server, uint32_t module)
{
    if (pa_context_get_state(server) == PA_CONTEXT_READY)
        server_forget(pa_context_unload_module(server, module, NULL, NULL));
}

static void release(struct target *target)
{
    if (target->fifo != -1)
        close(target->fifo);
    if (target->module != PA_INVALID_INDEX)
        unload(target->server, target->module);
    unlink(target->path);
    pa_context_unref(target->server);
    free(target);
}

static void loaded(pa_context *server, uint32_t index, void *context)
{
    struct target *target = context;
    struct stat status;
    char why[200];

    target->module = index;
    if (target->is_destroyed)
        return;
    if (index == PA_INVALID_INDEX) {
        snprintf(why, sizeof why, "the sound server cannot load %s: %s", MODULE,
                 pa_strerror(pa_context_errno(server)));
        target->events->failed(target->context, why);
        return;
    }
    /* For reading too: what is stale is taken out, and a server that is not reading is no error. */
    target->fifo = open(target->path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (target->fifo == -1 || fstat(target->fifo, &status) || !S_ISFIFO(status.st_mode)) {
        snprintf(why, sizeof why, "cannot open the sound server's FIFO: %s", strerror(errno));
        target->events->failed(target->context, why);
        return;
    }
    fcntl(target->fifo, F_SETPIPE_SZ, FIFO_SIZE);
    target->is_ready = true;
    target->events->ready(target->context);
    look(target);
}

/* Quotes, backslashes and more mean something where this is put in. */
static void quote(char *out, size_t size, const char *description)
{
    size_t used = 0;

    for (; *description && used + 1 < size; description++)
        out[used++] = strchr("'\"\\{}", *description) ? '_' : *description;
    out[used] = '\0';
}

static struct target *create(pa_mainloop_api *loop, pa_context *server, const char *node_name,
                             const char *description, const struct target_events *events,
                             void *context)
{
    static unsigned number;
    struct target *target = calloc(1, sizeof *target);
    char quoted[300], arguments[1024];

    if (!target)
        return NULL;
    target->loop = loop;
    target->server = pa_context_ref(server);
    target->events = events;
    target->context = context;
    target->fifo = -1;
    target->module = PA_INVALID_INDEX;
    snprintf(target->name, sizeof target->name, "%s", node_name);
    snprintf(target->path, sizeof target->path, "%s/" FIFO_PREFIX "%d.%u", folder(), (int)getpid(),
             number++);
    clock_timer_init(&target->stall, loop, stalled, target);
    quote(quoted, sizeof quoted, description);
    snprintf(arguments, sizeof arguments,
             "source_name=%s file=%s format=s16le rate=%u channels=1 channel_map=mono "
             "source_properties=\"device.description='%s' device.form_factor=microphone "
             "device.icon_name=audio-input-microphone\"",
             target->name, target->path, TARGET_RATE, quoted);
    unlink(target->path);
    if (!begin(target, pa_context_load_module(server, MODULE, arguments, loaded, target))) {
        pa_context_unref(server);
        free(target);
        return NULL;
    }
    target->next = targets;
    targets = target;
    return target;
}

static void destroy(struct target *target)
{
    struct target **place = &targets;

    while (*place != target)
        place = &(*place)->next;
    *place = target->next;
    clock_timer_free(&target->stall);
    target->is_destroyed = true;
    target->is_ready = false;
    if (!target->pending)
        release(target);
}

const struct target_backend target_pulse = {
    .create = create,
    .feed = feed,
    .silence = silence,
    .flush = flush,
    .destroy = destroy,
};

/* --- What a killed run has left --- */

static void clean(pa_context *server, const pa_module_info *info, int end, void *context)
{
    const char *at;
    long pid;

    (void)context;
    if (end || !info->argument || strcmp(info->name, MODULE) != 0)
        return;
    at = strstr(info->argument, "/" FIFO_PREFIX);
    if (!at || !strstr(info->argument, "source_name=pedos_mic."))
        return;
    pid = strtol(at + strlen("/" FIFO_PREFIX), NULL, 10);
    /* Another one that runs has its own. At a start nothing is this run's yet. */
    if (pid > 0 && pid != getpid() && (!kill((pid_t)pid, 0) || errno == EPERM))
        return;
    log_detail("a killed run has left a module: it is taken away");
    unload(server, info->index);
}

void target_pulse_clean(pa_context *server)
{
    /* Those that are here now are of this connection, and made later. */
    server_forget(pa_context_get_module_info_list(server, clean, NULL));
}
