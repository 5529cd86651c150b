/*
 * What a sound server has to offer a borrowed microphone as: a source that programs record, named
 * and fed by us. There is one back end for PipeWire and one for PulseAudio.
 *
 * All functions are called, and all events come, in the thread of the main loop. An event never
 * comes out of one of these functions. An event may call feed, silence and flush, but not destroy.
 */
#ifndef PEDOS_SOUND_TARGET_H
#define PEDOS_SOUND_TARGET_H

#include <pulse/context.h>
#include <pulse/mainloop-api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Samples are s16, one channel. */
#define TARGET_RATE 48000u

struct target_events {
    /* Once: the source is there for programs. */
    void (*ready)(void *context);
    /* Each time that it changes; at first nobody records. */
    void (*recorded)(void *context, bool is_recorded);
    /* Once, and nothing after it: there is no source (any more). One sentence for a person. */
    void (*failed)(void *context, const char *why);
};

struct target;

struct target_backend {
    /*
     * node_name is pedos_mic.VM or pedos_mic.VM.ID, description for people; both are copied, and
     * free of control characters. server is the connection to the sound server (to pipewire-pulse
     * where that is PipeWire), and outlives the target. NULL: no memory.
     */
    struct target *(*create)(pa_mainloop_api *loop, pa_context *server, const char *node_name,
                             const char *description, const struct target_events *events,
                             void *context);
    /* Samples to hear, at any time and in any number; what does not fit is dropped. */
    void (*feed)(struct target *target, const int16_t *samples, size_t count);
    /* As many samples of silence. */
    void (*silence)(struct target *target, size_t count);
    /* Forgets what was fed and not heard yet: at START and at STOP. */
    void (*flush)(struct target *target);
    /* Takes the source away from programs; no event comes any more. */
    void (*destroy)(struct target *target);
};

extern const struct target_backend target_pulse;
extern const struct target_backend target_pipewire;

#endif
