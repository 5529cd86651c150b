/*
 * Borrowed microphones as sources of the session's PipeWire: native streams of media.class
 * Audio/Source, each with a buffer of its own whose fill control (rate.h) follows the other
 * machine's clock. All of them share one connection, which comes back by itself: while there is no
 * server, one is looked for, and the targets get their nodes in each new one.
 */
#include "target.h"

#include <errno.h>
#include <pulse/mainloop-api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <spa/param/audio/format-utils.h>

#include "pipewire_library.h"
#include "playout.h"

_Static_assert(TARGET_RATE == RATE_HZ, "samples are played as they are fed");

/* How often a server is looked for that is not there; the same as for the agent's socket. */
#define RETRY_NS 500000000

/*
 * 10 ms: the server makes it a power of two, 256. Its own default of 1024 would be heard 16 ms
 * later.
 */
#define NODE_LATENCY "480/48000"

/* Below what session managers give to hardware (about 2000): a microphone of this machine stays the
 * default; above what nobody chose, so that it is the default where it is the only one. */
#define PRIORITY "1900"

/* A cycle for which the server asks no number of samples. */
#define WANTED_UNASKED 1024u

struct connection {
    const struct pipewire_library *library;
    pa_mainloop_api *main_loop;
    pa_io_event *readable;
    pa_defer_event *tell; /* enabled while there may be something to tell */
    struct pw_loop *loop; /* PipeWire's own; its descriptor is one of the main loop's */
    struct pw_context *context;
    struct pw_core *core; /* NULL: no server */
    struct spa_hook core_listener;
    struct spa_source *retry;
    bool is_usable; /* else libpipewire is not */
    bool is_lost;   /* to be seen to outside the library's own callbacks */
    struct spa_list targets;
};

struct target {
    struct spa_list link;
    struct connection *connection;
    const struct target_events *events;
    void *context;
    char *node_name, *description;

    struct pw_stream *stream; /* NULL: no server */
    struct spa_hook listener;
    /* What the library said, and what of it was told: events come from tell_all() alone, and so
     * neither out of a function of the library nor out of one of ours. */
    bool has_node, is_streaming, is_closing;
    const char *failed;
    bool is_ready_told, is_recorded_told, is_over;

    _Atomic(struct spa_io_rate_match *) match; /* where the rate is to be written */
    struct playout playout;
};

/* The one that all targets share; there is one while there are targets. */
static struct connection *shared;

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* ---- in the real-time thread: no locks, no allocation, no system call but the clock's */

static void on_process(void *data)
{
    struct target *target = data;
    const struct pipewire_library *library = target->connection->library;
    struct pw_buffer *buffer = library->pw_stream_dequeue_buffer(target->stream);
    struct spa_io_rate_match *match = atomic_load(&target->match);
    struct spa_data *area;
    uint32_t wanted;
    double faster;

    if (buffer == NULL)
        return;
    area = &buffer->buffer->datas[0];
    if (area->data != NULL) {
        wanted = buffer->requested != 0 ? (uint32_t)buffer->requested : WANTED_UNASKED;
        if (wanted > area->maxsize / sizeof(float))
            wanted = area->maxsize / (uint32_t)sizeof(float);
        faster = playout_fill(&target->playout, area->data, wanted, now_ns());
        area->chunk->offset = 0;
        area->chunk->stride = sizeof(float);
        area->chunk->size = wanted * (uint32_t)sizeof(float);
        if (match != NULL) {
            /* The resampler's rate is output to input: a source that is fast needs less than 1. */
            match->rate = 1.0 / faster;
            match->flags |= SPA_IO_RATE_MATCH_FLAG_ACTIVE;
        }
    }
    library->pw_stream_queue_buffer(target->stream, buffer);
}

/* ---- in the main loop: what the library says */

static void on_io_changed(void *data, uint32_t id, void *area, uint32_t size)
{
    struct target *target = data;

    if (id == SPA_IO_RateMatch)
        atomic_store(&target->match, size >= sizeof(struct spa_io_rate_match) ? area : NULL);
}

/*
 * At both ends of a recording: what is buffered was said while nobody recorded, or is of the past.
 */
static void set_streaming(struct target *target, bool is_streaming)
{
    if (is_streaming == target->is_streaming)
        return;
    target->is_streaming = is_streaming;
    playout_forget(&target->playout, is_streaming);
}

static void on_state_changed(void *data, enum pw_stream_state old, enum pw_stream_state state,
                             const char *error)
{
    struct target *target = data;

    (void)old;
    (void)error;
    if (target->is_closing)
        return;
    if (state == PW_STREAM_STATE_ERROR || state == PW_STREAM_STATE_UNCONNECTED)
        target->failed = "the session's PipeWire took its source away";
    else if (state >= PW_STREAM_STATE_PAUSED)
        target->has_node = true;
    set_streaming(target, state == PW_STREAM_STATE_STREAMING);
}

static const struct pw_stream_events stream_events = {
    .version = PW_VERSION_STREAM_EVENTS,
    .state_changed = on_state_changed,
    .io_changed = on_io_changed,
    .process = on_process,
};

static int connect_stream(struct target *target)
{
    const struct pipewire_library *library = target->connection->library;
    uint8_t room[1024];
    struct spa_pod_builder builder = SPA_POD_BUILDER_INIT(room, sizeof room);
    struct spa_audio_info_raw format = {
        .format = SPA_AUDIO_FORMAT_F32,
        .rate = RATE_HZ,
        .channels = 1,
        .position = {SPA_AUDIO_CHANNEL_MONO},
    };
    const struct spa_pod *parameter =
        spa_format_audio_raw_build(&builder, SPA_PARAM_EnumFormat, &format);

    return library->pw_stream_connect(target->stream, PW_DIRECTION_OUTPUT, PW_ID_ANY,
                                      PW_STREAM_FLAG_MAP_BUFFERS | PW_STREAM_FLAG_RT_PROCESS,
                                      &parameter, 1);
}

static void drop_stream(struct target *target)
{
    if (target->stream == NULL)
        return;
    /* The listener stays until then: the real-time thread may be calling it. */
    target->is_closing = true;
    target->connection->library->pw_stream_destroy(target->stream); /* and waits for that thread */
    target->is_closing = false;
    target->stream = NULL;
    atomic_store(&target->match, NULL);
    set_streaming(target, false);
}

static void make_stream(struct target *target)
{
    const struct pipewire_library *library = target->connection->library;
    const struct spa_dict_item items[] = {
        {PW_KEY_MEDIA_TYPE, "Audio"},
        {PW_KEY_MEDIA_CLASS, "Audio/Source"},
        {PW_KEY_NODE_NAME, target->node_name},
        {PW_KEY_NODE_DESCRIPTION, target->description},
        {PW_KEY_NODE_VIRTUAL, "true"},
        {PW_KEY_NODE_LATENCY, NODE_LATENCY},
        {PW_KEY_PRIORITY_SESSION, PRIORITY},
        {PW_KEY_DEVICE_FORM_FACTOR, "microphone"},
    };
    const struct spa_dict properties = SPA_DICT_INIT_ARRAY(items);
    int res;

    if (target->is_over)
        return;
    target->stream = library->pw_stream_new(target->connection->core, target->description,
                                            library->pw_properties_new_dict(&properties));
    if (target->stream == NULL) {
        target->failed = "the session's PipeWire makes no source";
        return;
    }
    spa_zero(target->listener);
    library->pw_stream_add_listener(target->stream, &target->listener, &stream_events, target);
    res = connect_stream(target);
    if (res >= 0)
        return;
    drop_stream(target);
    if (res == -EPIPE)
        target->connection->is_lost = true; /* the server went meanwhile */
    else
        target->failed = "the session's PipeWire makes no source";
}

static void on_core_error(void *data, uint32_t id, int seq, int res, const char *message)
{
    struct connection *connection = data;

    (void)seq;
    (void)message;
    if (id == PW_ID_CORE && res == -EPIPE)
        connection->is_lost = true;
}

static const struct pw_core_events core_events = {
    .version = PW_VERSION_CORE_EVENTS,
    .error = on_core_error,
};

static void look_for_server(struct connection *connection)
{
    struct target *target;

    connection->core = connection->library->pw_context_connect(connection->context, NULL, 0);
    if (connection->core == NULL)
        return;
    spa_zero(connection->core_listener);
    pw_core_add_listener(connection->core, &connection->core_listener, &core_events, connection);
    spa_list_for_each(target, &connection->targets, link) make_stream(target);
}

static void retry_later(struct connection *connection)
{
    struct timespec in = {.tv_nsec = RETRY_NS};

    pw_loop_update_timer(connection->loop, connection->retry, &in, NULL, false);
}

static void on_retry(void *data, uint64_t expirations)
{
    struct connection *connection = data;

    (void)expirations;
    if (connection->core != NULL)
        return;
    look_for_server(connection);
    if (connection->core == NULL)
        retry_later(connection);
}

static void leave_server(struct connection *connection)
{
    struct target *target;

    spa_list_for_each(target, &connection->targets, link)
    {
        drop_stream(target);
        target->failed = NULL; /* the server's end is no failure of its sources */
    }
    if (connection->core != NULL) {
        spa_hook_remove(&connection->core_listener);
        connection->library->pw_core_disconnect(connection->core);
    }
    connection->core = NULL;
    connection->is_lost = false;
}

/* Tells one thing that was not told yet; false if there is none. */
static bool tell_one(struct target *target)
{
    const char *failed = target->failed;

    if (target->is_over)
        return false;
    if (failed != NULL) {
        target->is_over = true;
        drop_stream(target);
        target->events->failed(target->context, failed);
    } else if (target->has_node && !target->is_ready_told) {
        target->is_ready_told = true;
        target->events->ready(target->context);
    } else if (target->is_streaming != target->is_recorded_told) {
        target->is_recorded_told = target->is_streaming;
        /* The resampler keeps some forty samples, which would begin the next recording. */
        if (!target->is_streaming && target->stream != NULL)
            target->connection->library->pw_stream_flush(target->stream, false);
        target->events->recorded(target->context, target->is_streaming);
    } else {
        return false;
    }
    return true;
}

static bool tell_any(struct connection *connection)
{
    struct target *target;

    spa_list_for_each(target, &connection->targets, link) if (tell_one(target)) return true;
    return false;
}

static void tell_all(struct connection *connection)
{
    if (connection->is_lost) {
        leave_server(connection);
        retry_later(connection);
    }
    /* From the beginning after each: what is told may change what the others have to tell. */
    while (tell_any(connection))
        ;
}

static void on_tell(pa_mainloop_api *api, pa_defer_event *event, void *data)
{
    api->defer_enable(event, 0);
    tell_all(data);
}

static void on_readable(pa_mainloop_api *api, pa_io_event *event, int fd, pa_io_event_flags_t what,
                        void *data)
{
    struct connection *connection = data;

    (void)api, (void)event, (void)fd, (void)what;
    pw_loop_enter(connection->loop);
    pw_loop_iterate(connection->loop, 0);
    pw_loop_leave(connection->loop);
    tell_all(connection);
}

/* ---- the connection */

/* Whether the file that the library reads unasked gives its thread real-time priority, as since
 * PipeWire 1.4, which complains about the other one. */
static bool has_one_configuration(const char *version)
{
    int major = 0, minor = 0;

    return sscanf(version, "%d.%d", &major, &minor) == 2 &&
           (major > 1 || (major == 1 && minor >= 4));
}

static struct pw_context *new_context(struct connection *connection)
{
    const struct pipewire_library *library = connection->library;
    const struct spa_dict_item items[] = {{PW_KEY_CONFIG_NAME, "client-rt.conf"}};
    const struct spa_dict properties = SPA_DICT_INIT_ARRAY(items);
    struct pw_context *context = NULL;

    if (!has_one_configuration(library->pw_get_library_version()))
        context = library->pw_context_new(connection->loop,
                                          library->pw_properties_new_dict(&properties), 0);
    return context != NULL ? context : library->pw_context_new(connection->loop, NULL, 0);
}

static void free_connection(struct connection *connection)
{
    if (connection->readable != NULL)
        connection->main_loop->io_free(connection->readable);
    connection->main_loop->defer_free(connection->tell);
    if (connection->loop != NULL) {
        leave_server(connection);
        if (connection->context != NULL)
            connection->library->pw_context_destroy(connection->context);
        if (connection->retry != NULL)
            pw_loop_destroy_source(connection->loop, connection->retry);
        connection->library->pw_loop_destroy(connection->loop);
    }
    free(connection);
}

/* False: PipeWire cannot be used at all. */
static bool start(struct connection *connection)
{
    const char *why;

    connection->library = pipewire_library(&why);
    if (connection->library == NULL)
        return false;
    connection->loop = connection->library->pw_loop_new(NULL);
    if (connection->loop == NULL)
        return false;
    connection->context = new_context(connection);
    connection->retry = pw_loop_add_timer(connection->loop, on_retry, connection);
    if (connection->context == NULL || connection->retry == NULL)
        return false;
    connection->readable =
        connection->main_loop->io_new(connection->main_loop, pw_loop_get_fd(connection->loop),
                                      PA_IO_EVENT_INPUT, on_readable, connection);
    look_for_server(connection);
    if (connection->core == NULL)
        retry_later(connection);
    return true;
}

static struct connection *new_connection(pa_mainloop_api *main_loop)
{
    struct connection *connection = calloc(1, sizeof *connection);

    if (connection == NULL)
        return NULL;
    spa_list_init(&connection->targets);
    connection->main_loop = main_loop;
    connection->tell = main_loop->defer_new(main_loop, on_tell, connection);
    main_loop->defer_enable(connection->tell, 0);
    connection->is_usable = start(connection);
    return connection;
}

/* ---- struct target_backend */

static void destroy(struct target *target)
{
    struct connection *connection = target->connection;

    drop_stream(target);
    spa_list_remove(&target->link);
    free(target->node_name);
    free(target->description);
    free(target);
    if (spa_list_is_empty(&connection->targets)) {
        free_connection(connection);
        shared = NULL;
    }
}

static struct target *create(pa_mainloop_api *loop, pa_context *server, const char *node_name,
                             const char *description, const struct target_events *events,
                             void *context)
{
    struct target *target = calloc(1, sizeof *target);

    (void)server;
    if (target == NULL)
        return NULL;
    target->node_name = strdup(node_name);
    target->description = strdup(description);
    if (shared == NULL)
        shared = new_connection(loop);
    if (target->node_name == NULL || target->description == NULL || shared == NULL) {
        free(target->node_name);
        free(target->description);
        free(target);
        return NULL;
    }
    target->connection = shared;
    target->events = events;
    target->context = context;
    playout_init(&target->playout);
    spa_list_append(&shared->targets, &target->link);
    if (!shared->is_usable)
        target->failed = "libpipewire-0.3-0 is not installed, or does not start";
    else if (shared->core != NULL)
        make_stream(target);
    loop->defer_enable(shared->tell, 1);
    return target;
}

static void feed(struct target *target, const int16_t *samples, size_t count)
{
    if (target->is_streaming)
        playout_feed(&target->playout, samples, count, now_ns());
}

static void silence(struct target *target, size_t count) { feed(target, NULL, count); }

static void flush(struct target *target) { playout_forget(&target->playout, false); }

const struct target_backend target_pipewire = {
    .create = create,
    .feed = feed,
    .silence = silence,
    .flush = flush,
    .destroy = destroy,
};
