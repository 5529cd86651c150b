#include "frames.h"

#include <stdbool.h>
#include <string.h>

#define SAMPLE 2u

static uint32_t number(const uint8_t *at, unsigned size)
{
    uint32_t value = 0;

    for (unsigned i = size; i--;)
        value = value << 8 | at[i];
    return value;
}

static void put(uint8_t *at, uint32_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

/* Whether a header is one of that side; what follows it is not looked at. */
static bool is_header(enum frame_side sender, uint32_t type, uint32_t length, uint32_t counter)
{
    switch (type) {
    case FRAME_AUDIO:
        return sender == FRAME_FROM_SOURCE && length >= SAMPLE && length <= FRAME_AUDIO_MAX &&
               length % SAMPLE == 0;
    case FRAME_SILENCE:
        return sender == FRAME_FROM_SOURCE && length == 4;
    case FRAME_START:
    case FRAME_STOP:
        return sender == FRAME_FROM_TARGET && length == 0 && counter == 0;
    }
    return false;
}

int64_t frame_take(struct frame *frame, enum frame_side sender, const uint8_t *bytes, size_t count)
{
    uint32_t type, length, counter;

    if (count < FRAME_HEADER)
        return 0;
    type = number(bytes, 2);
    length = number(bytes + 2, 2);
    counter = number(bytes + 4, 4);
    if (!is_header(sender, type, length, counter))
        return FRAME_MALFORMED;
    if (count < FRAME_HEADER + length)
        return 0;
    *frame = (struct frame){.type = (enum frame_type)type, .counter = counter};
    if (type == FRAME_AUDIO) {
        frame->samples = bytes + FRAME_HEADER;
        frame->count = length / SAMPLE;
    } else if (type == FRAME_SILENCE) {
        frame->count = number(bytes + FRAME_HEADER, 4);
        if (!frame->count || frame->count > FRAME_SILENCE_MAX)
            return FRAME_MALFORMED;
    }
    return FRAME_HEADER + length;
}

size_t frame_build(const struct frame *frame, uint8_t *bytes)
{
    uint32_t length = 0;

    if (frame->type == FRAME_AUDIO) {
        if (!frame->count || frame->count > FRAME_AUDIO_MAX / SAMPLE)
            return 0;
        length = frame->count * SAMPLE;
        memcpy(bytes + FRAME_HEADER, frame->samples, length);
    } else if (frame->type == FRAME_SILENCE) {
        if (!frame->count || frame->count > FRAME_SILENCE_MAX)
            return 0;
        length = 4;
        put(bytes + FRAME_HEADER, frame->count, 4);
    }
    put(bytes, frame->type, 2);
    put(bytes + 2, length, 2);
    put(bytes + 4, frame->counter, 4);
    return FRAME_HEADER + length;
}
