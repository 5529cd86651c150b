/* What lent and borrowed microphones have in common. */
#ifndef PEDOS_SOUND_STREAMS_H
#define PEDOS_SOUND_STREAMS_H

#include "agent.h"
#include "frames.h"
#include "recordings.h"
#include "server.h"
#include "sources.h"

#include <pulse/mainloop-api.h>
#include <stdbool.h>
#include <stdint.h>

/* The program around a stream. */
struct host {
    pa_mainloop_api *loop;
    struct agent *agent;
    struct server *server;
    struct sources *sources;
    struct recordings *recordings;
    /* Others listen to a recording now than before: its name has to say it. */
    void (*listeners_changed)(void *context, struct recording *recording);
    /* A stream is over and waits to be taken away in the main loop. */
    void (*over)(void *context);
    void *context;
};

/* Tells the agent: READY, LISTENING with a state, or FAILED and ENDED with a reason. */
void host_tell(struct host *host, enum link_type type, uint32_t id, bool state, const char *why);

/* How the bytes of a data channel end. */
#define CHANNEL_CLOSED "the channel is closed"
#define CHANNEL_MALFORMED "the other VM sent a malformed frame"

/* Frames that come from a socket, from whatever pieces it gives. */
struct inbox {
    uint8_t bytes[4 * FRAME_MAX];
    size_t have, at;
};

/* Reads what is there, as far as there is room. Returns NULL, or why the channel is over. */
const char *inbox_read(struct inbox *inbox, int fd);
/* As frame_take, of what was read. */
int64_t inbox_take(struct inbox *inbox, enum frame_side sender, struct frame *frame);

#endif
