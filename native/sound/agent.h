/* The connection to the agent: made again whenever it is lost. */
#ifndef PEDOS_SOUND_AGENT_H
#define PEDOS_SOUND_AGENT_H

#include "link.h"

#include <pulse/mainloop-api.h>

struct agent_events {
    /* The agent has accepted this program. */
    void (*welcome)(void *context);
    /* LEND, BORROW, MUTE or CLOSE. fd is that of a message with one, now the callee's, else -1. */
    void (*message)(void *context, const struct link_message *message, int fd);
    /* The connection that began with welcome is over. */
    void (*lost)(void *context);
};

struct agent;

/* path is kept. NULL: no memory. */
struct agent *agent_new(pa_mainloop_api *loop, const char *path, const struct agent_events *events,
                        void *context);
void agent_free(struct agent *agent);

/* Sends a message, if the agent is there; a message is lost only together with the connection. */
void agent_send(struct agent *agent, const struct link_message *message);

/* Ends a connection whose other side breaks the rules; lost comes later. */
void agent_breach(struct agent *agent, const char *why);

#endif
