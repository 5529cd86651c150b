/* The connection to the sound server: made again whenever it is lost. */
#ifndef PEDOS_SOUND_SERVER_H
#define PEDOS_SOUND_SERVER_H

#include <pulse/context.h>
#include <pulse/operation.h>
#include <pulse/subscribe.h>
#include <stdbool.h>

struct server_events {
    /* The server answers. */
    void (*up)(void *context);
    /* It does not any more: why, for a person. */
    void (*lost)(void *context, const char *why);
    /* Something of this kind is new, other or gone there. */
    void (*changed)(void *context, pa_subscription_event_type_t what);
};

struct server;

/* Lets go of an operation whose end nobody waits for; NULL: it could not even be begun. */
void server_forget(pa_operation *operation);

/* NULL: no memory. */
struct server *server_new(pa_mainloop_api *loop, const struct server_events *events, void *context);
void server_free(struct server *server);

/* NULL while it does not answer. */
pa_context *server_context(const struct server *server);
bool server_is_pipewire(const struct server *server);

/* Calls done when all that was asked of the server has reached it, at once if there is none. */
void server_drain(struct server *server, void (*done)(void *context));

#endif
