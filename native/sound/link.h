/*
 * The messages between the agent and pedos-sound: protocol/pedos_protocol/sound_link.py says what
 * they are, and tests compare the two. No input, no output.
 */
#ifndef PEDOS_SOUND_LINK_H
#define PEDOS_SOUND_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LINK_VERSION 1u
#define LINK_DATAGRAM_MAX (32u * 1024)
#define LINK_DEVICES_MAX 64u
#define LINK_LINE_MAX 256u        /* bytes, as all of these */
#define LINK_DESCRIPTION_MAX 128u
#define LINK_DEVICE_MAX 64u
#define LINK_IDENTITY_MAX 128u
#define LINK_VM_MAX 31u

/* The device that is the user's choice. */
#define LINK_DEFAULT_DEVICE "mic"
#define LINK_DEFAULT_IDENTITY "default"

enum link_side { LINK_FROM_SESSION, LINK_FROM_AGENT };

enum link_type {
    LINK_HELLO = 1,
    LINK_SERVER = 2,
    LINK_DEVICES = 3,
    LINK_READY = 4,
    LINK_FAILED = 5,
    LINK_LISTENING = 6,
    LINK_ENDED = 7,
    LINK_WELCOME = 11,
    LINK_LEND = 12,
    LINK_BORROW = 13,
    LINK_MUTE = 14,
    LINK_CLOSE = 15,
    LINK_REFUSED = 16,
};

struct link_device {
    char id[LINK_DEVICE_MAX + 1];
    char identity[LINK_IDENTITY_MAX + 1];
    char description[LINK_DESCRIPTION_MAX + 1];
    bool is_default;
};

/* Only the fields that the type has mean something. */
struct link_message {
    enum link_type type;
    uint16_t version;
    uint32_t id;
    bool flag;                  /* is_muted, is_listening */
    char line[LINK_LINE_MAX + 1]; /* program, state, why */
    char vm[LINK_VM_MAX + 1];
    char device[LINK_DEVICE_MAX + 1];
    char identity[LINK_IDENTITY_MAX + 1];
    char description[LINK_DESCRIPTION_MAX + 1];
    const struct link_device *devices; /* of DEVICES */
    unsigned count;
};

/* Whether a message of this type comes with one descriptor; others come with none. */
bool link_has_descriptor(enum link_type type);

/*
 * Reads a datagram. devices has room for LINK_DEVICES_MAX; it may be NULL, and then DEVICES is no
 * message. Returns false if it is none that sender may send.
 */
bool link_parse(struct link_message *message, struct link_device *devices, enum link_side sender,
                const uint8_t *bytes, size_t count);

/* Writes the datagram, of at most LINK_DATAGRAM_MAX bytes. Returns how many it has; 0 if a field has
 * no such value. */
size_t link_build(const struct link_message *message, uint8_t *bytes);

#endif
