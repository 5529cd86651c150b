/*
 * The sound server's microphones that can be lent, and which of the borrowed ones it has.
 *
 * Not microphones: monitors, which would be what the user hears, and borrowed microphones, which
 * are not ours to lend.
 */
#ifndef PEDOS_SOUND_SOURCES_H
#define PEDOS_SOUND_SOURCES_H

#include "link.h"

#include <pulse/context.h>
#include <pulse/mainloop-api.h>
#include <stdbool.h>

/* What the sources that are borrowed microphones are called, with the VM's name behind it. */
#define BORROWED_PREFIX "pedos_mic."
/* Bytes of a source's name. */
#define SOURCE_NAME_MAX 255u

struct sources_events {
    /* There is a list of microphones, and it is not what it was. */
    void (*changed)(void *context);
    /* The server has told all of its sources; comes after `changed`. */
    void (*looked)(void *context);
};

struct sources;

/* NULL: no memory. */
struct sources *sources_new(pa_mainloop_api *loop, const struct sources_events *events,
                            void *context);
void sources_free(struct sources *sources);

/* With a connection, looks what there is. NULL: the server is gone; the list of microphones stays
 * as it was. */
void sources_use(struct sources *sources, pa_context *pulse);
/* Something changed there. */
void sources_look(struct sources *sources);
/* After this the list is empty until there is a new one. */
void sources_forget(struct sources *sources);

/* What is announced to the agent; LINK_DEVICES_MAX at most. */
const struct link_device *sources_list(const struct sources *sources, unsigned *count);
/* Whether a device of that identity is among them, which may be old while the server restarts. */
bool sources_has(const struct sources *sources, const char *device, const char *identity);

/*
 * The server's name of the source that a device is now, or NULL: it is none, as the user's choice
 * may be. Valid until the list changes.
 */
const char *sources_name(const struct sources *sources, const char *device);

/* Whether programs find the borrowed microphone of that name. True where that is not known, as the
 * server has more of them than a session borrows. */
bool sources_offer(const struct sources *sources, const char *name);

#endif
