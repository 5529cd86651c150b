/*
 * The frames of a microphone's data channel: protocol/pedos_protocol/sound_frames.py says what they
 * are, and tests compare the two. No input, no output.
 */
#ifndef PEDOS_SOUND_FRAMES_H
#define PEDOS_SOUND_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER 8u
#define FRAME_AUDIO_MAX 1920u   /* bytes of samples */
#define FRAME_SILENCE_MAX 48000u /* samples */
#define FRAME_MAX (FRAME_HEADER + FRAME_AUDIO_MAX)

enum frame_type { FRAME_AUDIO = 1, FRAME_SILENCE = 2, FRAME_START = 3, FRAME_STOP = 4 };
enum frame_side { FRAME_FROM_SOURCE, FRAME_FROM_TARGET };

struct frame {
    enum frame_type type;
    uint32_t counter;       /* of its first sample */
    uint32_t count;         /* of samples, heard or silent */
    const uint8_t *samples; /* of AUDIO: 2 * count bytes */
};

#define FRAME_MALFORMED (-1)

/*
 * Reads the frame that bytes begin with. Returns how many bytes it has, 0 if there are not enough
 * of them yet, or FRAME_MALFORMED.
 */
int64_t frame_take(struct frame *frame, enum frame_side sender, const uint8_t *bytes, size_t count);

/* Writes the header and, of SILENCE, the number; the samples of AUDIO are copied too. Returns how
 * many bytes the frame has, at most FRAME_MAX; 0 if there is no such frame. */
size_t frame_build(const struct frame *frame, uint8_t *bytes);

#endif
