/*
 * libFuzzer's target for what pedos-sound reads: messages of the link, frames of a data channel, and
 * texts of devices. Whatever is taken for a message or a frame is built again from what was read of
 * it, to the same bytes, so nothing in it was overlooked.
 */
#include <stdlib.h>

#include "text.c"

#define number frame_number
#include "frames.c"
#undef number
#include "link.c"

#define CHECK(what)      \
    do {                 \
        if (!(what))     \
            abort();     \
    } while (0)

static void read_message(enum link_side sender, const uint8_t *bytes, size_t count)
{
    static struct link_message message;
    static struct link_device devices[LINK_DEVICES_MAX];
    static uint8_t again[LINK_DATAGRAM_MAX];

    if (!link_parse(&message, devices, sender, bytes, count))
        return;
    CHECK(link_build(&message, again) == count);
    CHECK(!memcmp(again, bytes, count));
}

static void read_frames(enum frame_side sender, const uint8_t *bytes, size_t count)
{
    uint8_t again[FRAME_MAX];
    struct frame frame, early;
    int64_t taken;

    while ((taken = frame_take(&frame, sender, bytes, count)) > 0) {
        CHECK((size_t)taken <= count && (size_t)taken <= FRAME_MAX);
        CHECK(frame.count <= FRAME_SILENCE_MAX);
        CHECK(sender == FRAME_FROM_SOURCE ? frame.count : !frame.counter);
        CHECK(frame.samples == NULL || frame.count * 2 + FRAME_HEADER == (size_t)taken);
        CHECK(frame_take(&early, sender, bytes, (size_t)taken - 1) == 0);
        CHECK(frame_build(&frame, again) == (size_t)taken);
        CHECK(!memcmp(again, bytes, (size_t)taken));
        bytes += taken;
        count -= (size_t)taken;
    }
    CHECK(taken == 0 || taken == FRAME_MALFORMED);
}

/* A character is written in one way only. */
static void read_character(const uint8_t *bytes, size_t count)
{
    uint32_t code;
    size_t length = text_character(bytes, count, &code);

    if (!length)
        return;
    CHECK(length <= count);
    CHECK(length == (code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4));
    CHECK(code <= 0x10ffff && code >> 11 != 0xd800 >> 11);
}

static void read_text_of(const uint8_t *bytes, size_t count)
{
    char text[600], line[LINK_DESCRIPTION_MAX + 1], again[LINK_DESCRIPTION_MAX + 1];
    char word[LINK_DEVICE_MAX + 1], identity[LINK_IDENTITY_MAX + 1];

    for (size_t i = 0; i < count; i++)
        read_character(bytes + i, count - i);
    if (count >= sizeof text)
        count = sizeof text - 1;
    memcpy(text, bytes, count);
    text[count] = '\0';
    text_to_line(line, LINK_DESCRIPTION_MAX, text);
    CHECK(strlen(line) <= LINK_DESCRIPTION_MAX);
    CHECK(text_is_line((uint8_t *)line, strlen(line)));
    text_to_line(again, LINK_DESCRIPTION_MAX, line);
    CHECK(!strcmp(line, again));
    text_to_word(word, LINK_DEVICE_MAX, text, "._-");
    CHECK(text_is_device(word));
    CHECK(!text_is_device(text) || !strcmp(word, text));
    text_to_word(identity, LINK_IDENTITY_MAX, text, ":._-");
    CHECK(text_is_identity(identity) && *identity);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy;

    if (!size)
        return 0;
    /* Exactly as long, so that the sanitizer sees each byte beyond it. */
    copy = malloc(size - 1 ? size - 1 : 1);
    CHECK(copy);
    memcpy(copy, data + 1, size - 1);
    switch (data[0] % 5) {
    case 0:
        read_message(LINK_FROM_SESSION, copy, size - 1);
        break;
    case 1:
        read_message(LINK_FROM_AGENT, copy, size - 1);
        break;
    case 2:
        read_frames(FRAME_FROM_SOURCE, copy, size - 1);
        break;
    case 3:
        read_frames(FRAME_FROM_TARGET, copy, size - 1);
        break;
    default:
        read_text_of(copy, size - 1);
    }
    free(copy);
    return 0;
}
