/*
 * Recordings of the sound server's sources. Each source is recorded at most once, for all that
 * listen to it, and only while somebody does.
 */
#ifndef PEDOS_SOUND_RECORDINGS_H
#define PEDOS_SOUND_RECORDINGS_H

#include <pulse/context.h>
#include <pulse/mainloop-api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct recording;
struct recordings;

struct recordings_events {
    /* Samples come from a recording now, or do not any more. */
    void (*turned)(void *context, struct recording *recording);
    /* Samples of a recording, for all that joined it. */
    void (*heard)(void *context, struct recording *recording, const int16_t *samples, size_t count);
};

/* NULL: no memory. */
struct recordings *recordings_new(pa_mainloop_api *loop, const struct recordings_events *events,
                                  void *context);
void recordings_free(struct recordings *all);

/* A connection. NULL: the server is gone; recordings stay, without sound, and go on when it is
 * back, see recordings_try. */
void recordings_use(struct recordings *all, pa_context *pulse);
/* What could not be recorded may be there now. */
void recordings_try(struct recordings *all);

/* Records that source for one more, who sees in the streams' name; NULL: no memory. */
struct recording *recordings_join(struct recordings *all, const char *name);
/* The last one to leave closes it. Returns whether it is still there. */
bool recording_leave(struct recording *recording);
/* Who hears it, for people: a line of at most LINK_LINE_MAX bytes. */
void recording_rename(struct recording *recording, const char *title);
const char *recording_name(const struct recording *recording);
/* Whether samples come from it. */
bool recording_is_live(const struct recording *recording);

#endif
