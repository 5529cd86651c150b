/*
 * What pedos-sound's parsers say to bytes, for a test that asks Python's as well.
 *
 * Reads records (what: u8, count: u16 little-endian, bytes) and answers each with how many bytes
 * were taken (i32; -1: malformed), and those bytes as they are built again from what was read.
 * what: 0 and 1 a datagram of the session and of the agent, 2 and 3 a frame of the source and of
 * the target, 4 a text as a line, 5 as an id.
 */
#include "frames.h"
#include "link.h"
#include "text.h"

#include <stdio.h>
#include <string.h>

static uint8_t bytes[65536], again[65536];

static int32_t answer(unsigned what, size_t count)
{
    static struct link_message message;
    static struct link_device devices[LINK_DEVICES_MAX];
    struct frame frame;

    switch (what) {
    case 0:
    case 1:
        if (!link_parse(&message, devices, what ? LINK_FROM_AGENT : LINK_FROM_SESSION, bytes, count))
            return -1;
        return (int32_t)link_build(&message, again);
    case 2:
    case 3: {
        int64_t taken =
            frame_take(&frame, what == 2 ? FRAME_FROM_SOURCE : FRAME_FROM_TARGET, bytes, count);

        return taken > 0 ? (int32_t)frame_build(&frame, again) : (int32_t)taken;
    }
    }
    bytes[count] = 0;
    if (what == 4)
        text_to_line((char *)again, LINK_DESCRIPTION_MAX, (char *)bytes);
    else
        text_to_word((char *)again, LINK_DEVICE_MAX, (char *)bytes, "._-");
    return (int32_t)strlen((char *)again);
}

int main(void)
{
    uint8_t header[3];

    while (fread(header, 1, sizeof header, stdin) == sizeof header) {
        size_t count = header[1] | (size_t)header[2] << 8;
        int32_t taken;

        if (count >= sizeof bytes || fread(bytes, 1, count, stdin) != count)
            return 1;
        taken = answer(header[0], count);
        fwrite(&taken, sizeof taken, 1, stdout);
        if (taken > 0)
            fwrite(again, 1, (size_t)taken, stdout);
        fflush(stdout);
    }
    return 0;
}
