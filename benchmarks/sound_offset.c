/*
 * A microphone whose clock is fast or slow, for pedos-sound alone: preloaded, it opens each record
 * stream at the rate that the file named by PEDOS_SOUND_RATE_FILE has, while pedos-sound counts
 * what arrives as 48000 a second. So 48048 is a source that is 1000 ppm fast.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pulse/stream.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pa_stream *pa_stream_new(pa_context *context, const char *name, const pa_sample_spec *spec,
                         const pa_channel_map *map)
{
    pa_stream *(*next)(pa_context *, const char *, const pa_sample_spec *, const pa_channel_map *);
    const char *path = getenv("PEDOS_SOUND_RATE_FILE");
    pa_sample_spec other = *spec;
    FILE *file;

    *(void **)&next = dlsym(RTLD_NEXT, "pa_stream_new");
    if (path != NULL && strcmp(program_invocation_short_name, "pedos-sound") == 0) {
        file = fopen(path, "r");
        if (file == NULL || fscanf(file, "%u", &other.rate) != 1)
            abort();
        fclose(file);
    }
    return next(context, name, &other, map);
}
