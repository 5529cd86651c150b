#include "server.h"

#include "clock.h"
#include "log.h"
#include "text.h"
#include "timing.h"

#include <pulse/error.h>
#include <pulse/introspect.h>
#include <pulse/proplist.h>
#include <stdlib.h>
#include <string.h>

/* A server that restarts is found at once, and one that stays away is looked for rarely. */
#define RETRY_MS 500
#define RETRY_TIMES 20
#define RETRY_MS_RARELY 5000
/* A server that accepts and then says nothing is none. */
#define ANSWER_MS 10000

struct server {
    pa_mainloop_api *loop;
    const struct server_events *events;
    void *context;
    pa_context *pulse;
    bool is_up, is_pipewire, is_told;
    struct clock_timer retry;
    unsigned failures;
    void (*drained)(void *context);
};

/* Never in a callback of the connection itself: the timer calls it. */
static void disconnect(struct server *server)
{
    if (!server->pulse)
        return;
    pa_context_set_state_callback(server->pulse, NULL, NULL);
    pa_context_set_subscribe_callback(server->pulse, NULL, NULL);
    pa_context_disconnect(server->pulse);
    pa_context_unref(server->pulse);
    server->pulse = NULL;
}

static void fail(struct server *server, const char *why)
{
    bool was_up = server->is_up;

    server->is_up = false;
    server->failures++;
    clock_timer_set(&server->retry, clock_now() + (server->failures < RETRY_TIMES ? RETRY_MS
                                                                                  : RETRY_MS_RARELY));
    if (!was_up && server->is_told)
        return;
    server->is_told = true;
    log_detail("no sound server answers: %s", why);
    server->events->lost(server->context, why);
}

static void introduced(pa_context *pulse, const pa_server_info *info, void *context)
{
    struct server *server = context;

    if (pulse != server->pulse || server->is_up || pa_context_get_state(pulse) != PA_CONTEXT_READY)
        return;
    if (!info || !info->server_name) {
        fail(server, "it does not say what it is");
        return;
    }
    server->is_up = true;
    server->is_told = false;
    server->is_pipewire = strstr(info->server_name, "on PipeWire") != NULL;
    server->failures = 0;
    clock_timer_set(&server->retry, NEVER);
    log_detail("connected to %s", info->server_name);
    server->events->up(server->context);
}

static void changed(pa_context *pulse, pa_subscription_event_type_t what, uint32_t index,
                    void *context)
{
    struct server *server = context;

    (void)index;
    if (pulse == server->pulse && server->is_up)
        server->events->changed(server->context, what & PA_SUBSCRIPTION_EVENT_FACILITY_MASK);
}

void server_forget(pa_operation *operation)
{
    if (operation)
        pa_operation_unref(operation);
}

static void state_changed(pa_context *pulse, void *context)
{
    struct server *server = context;

    switch (pa_context_get_state(pulse)) {
    case PA_CONTEXT_READY:
        pa_context_set_subscribe_callback(pulse, changed, server);
        server_forget(pa_context_subscribe(pulse,
                                           PA_SUBSCRIPTION_MASK_SOURCE |
                                               PA_SUBSCRIPTION_MASK_SERVER |
                                               PA_SUBSCRIPTION_MASK_SOURCE_OUTPUT,
                                           NULL, NULL));
        server_forget(pa_context_get_server_info(pulse, introduced, server));
        return;
    case PA_CONTEXT_FAILED:
    case PA_CONTEXT_TERMINATED:
        fail(server, pa_strerror(pa_context_errno(pulse)));
        return;
    default:
        return;
    }
}

static void try_again(void *context)
{
    struct server *server = context;
    pa_proplist *properties;

    if (server->pulse && PA_CONTEXT_IS_GOOD(pa_context_get_state(server->pulse)) &&
        !server->is_up) {
        disconnect(server);
        fail(server, "it does not answer in time");
        return;
    }
    disconnect(server);
    properties = pa_proplist_new();
    pa_proplist_sets(properties, PA_PROP_APPLICATION_NAME, "PedOS microphones");
    pa_proplist_sets(properties, PA_PROP_APPLICATION_ID, "pedos-sound");
    pa_proplist_sets(properties, PA_PROP_APPLICATION_VERSION, PEDOS_VERSION);
    pa_proplist_sets(properties, PA_PROP_APPLICATION_ICON_NAME, "audio-input-microphone");
    server->pulse = pa_context_new_with_proplist(server->loop, NULL, properties);
    pa_proplist_free(properties);
    if (!server->pulse) {
        fail(server, "no memory");
        return;
    }
    clock_timer_set(&server->retry, clock_now() + ANSWER_MS);
    pa_context_set_state_callback(server->pulse, state_changed, server);
    /* Not NOFAIL: that waits for a word on D-Bus, which a session may not have. */
    if (pa_context_connect(server->pulse, NULL, PA_CONTEXT_NOAUTOSPAWN, NULL) < 0 &&
        server->retry.due != NEVER && PA_CONTEXT_IS_GOOD(pa_context_get_state(server->pulse)))
        fail(server, pa_strerror(pa_context_errno(server->pulse)));
}

struct server *server_new(pa_mainloop_api *loop, const struct server_events *events, void *context)
{
    struct server *server = calloc(1, sizeof *server);

    if (!server)
        return NULL;
    server->loop = loop;
    server->events = events;
    server->context = context;
    clock_timer_init(&server->retry, loop, try_again, server);
    clock_timer_set(&server->retry, clock_now());
    return server;
}

void server_free(struct server *server)
{
    disconnect(server);
    clock_timer_free(&server->retry);
    free(server);
}

pa_context *server_context(const struct server *server)
{
    return server->is_up ? server->pulse : NULL;
}

bool server_is_pipewire(const struct server *server)
{
    return server->is_pipewire;
}

static void drained(pa_context *pulse, void *context)
{
    struct server *server = context;

    (void)pulse;
    server->drained(server->context);
}

void server_drain(struct server *server, void (*done)(void *context))
{
    pa_operation *operation = NULL;

    server->drained = done;
    if (server->is_up)
        operation = pa_context_drain(server->pulse, drained, server);
    if (operation)
        pa_operation_unref(operation);
    else
        done(server->context);
}
