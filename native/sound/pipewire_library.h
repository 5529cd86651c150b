/*
 * libpipewire, loaded when a PipeWire server is there: a system without it runs the program with
 * PulseAudio. What PipeWire's headers define in line needs no symbol of the library.
 */
#ifndef PEDOS_SOUND_PIPEWIRE_LIBRARY_H
#define PEDOS_SOUND_PIPEWIRE_LIBRARY_H

#include <pipewire/pipewire.h>

#define PIPEWIRE_FUNCTIONS(X)                                                                      \
    X(pw_init)                                                                                     \
    X(pw_get_library_version)                                                                      \
    X(pw_loop_new)                                                                                 \
    X(pw_loop_destroy)                                                                             \
    X(pw_context_new)                                                                              \
    X(pw_context_destroy)                                                                          \
    X(pw_context_connect)                                                                          \
    X(pw_core_disconnect)                                                                          \
    X(pw_properties_new_dict)                                                                      \
    X(pw_stream_new)                                                                               \
    X(pw_stream_destroy)                                                                           \
    X(pw_stream_add_listener)                                                                      \
    X(pw_stream_connect)                                                                           \
    X(pw_stream_flush)                                                                             \
    X(pw_stream_dequeue_buffer)                                                                    \
    X(pw_stream_queue_buffer)

struct pipewire_library {
#define PIPEWIRE_POINTER(name) __typeof__(&name) name;
    PIPEWIRE_FUNCTIONS(PIPEWIRE_POINTER)
#undef PIPEWIRE_POINTER
};

/*
 * The library, loaded and initialised once and kept until the program ends; NULL if it cannot be
 * loaded, and then *why says the reason (valid until the next call).
 */
const struct pipewire_library *pipewire_library(const char **why);

#endif
