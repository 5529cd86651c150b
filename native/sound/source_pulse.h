/*
 * The microphones of the sound server: which there are, and recordings of them. Each is recorded at
 * most once, for all that listen to it, and only while somebody does.
 *
 * Not microphones: monitors, which would be what the user hears, and borrowed microphones, which
 * are not ours to lend.
 */
#ifndef PEDOS_SOUND_SOURCE_PULSE_H
#define PEDOS_SOUND_SOURCE_PULSE_H

#include "link.h"

#include <pulse/context.h>
#include <pulse/mainloop-api.h>
#include <stdbool.h>
#include <stdint.h>

/* What the sources that are borrowed microphones are called, with the VM's name behind it. */
#define BORROWED_PREFIX "pedos_mic."

struct recording;

struct sources_events {
    /* There is a list, and it is not what it was. */
    void (*changed)(void *context);
    /* Samples come from a recording now, or do not any more. */
    void (*turned)(void *context, struct recording *recording);
    /* Samples of a recording, for all that joined it. */
    void (*heard)(void *context, struct recording *recording, const int16_t *samples, size_t count);
};

struct sources;

/* NULL: no memory. */
struct sources *sources_new(pa_mainloop_api *loop, const struct sources_events *events,
                            void *context);
void sources_free(struct sources *sources);

/* With a connection, looks what there is. NULL: the server is gone; recordings stay, without sound,
 * and go on when it is back. The list stays as it was. */
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

/* Records that source for one more, who sees in the streams' name; NULL: no memory. */
struct recording *recording_join(struct sources *sources, const char *name);
/* The last one to leave closes it. Returns whether it is still there. */
bool recording_leave(struct recording *recording);
/* Who hears it, for people: a line of at most LINK_LINE_MAX bytes. */
void recording_rename(struct recording *recording, const char *title);
const char *recording_name(const struct recording *recording);
/* Whether samples come from it. */
bool recording_is_live(const struct recording *recording);

#endif
