/*
 * The messages between this program and the agent: protocol/pedos_protocol/call_link.py says what
 * they are, and tests compare the two. No input, no output.
 */
#ifndef PEDOS_CALL_PACKET_H
#define PEDOS_CALL_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACKET_VERSION 1u
#define PACKET_MAX 4096u
#define PACKET_TARGET_MAX 128u /* bytes, as all of these */
#define PACKET_SERVICE_MAX 256u
#define PACKET_ARGUMENT_MAX 512u
#define PACKET_USER_MAX 64u
#define PACKET_ID_MAX 64u
#define PACKET_TEXT_MAX 512u
#define PACKET_RULE_MAX 256u
#define PACKET_HINT_MAX 256u

enum packet_type {
    PACKET_CALL = 1,
    PACKET_SIGNAL = 2,
    PACKET_STARTED = 11,
    PACKET_ENDED = 12,
};

enum packet_kind {
    PACKET_EXITED = 1,
    PACKET_SIGNALLED,
    PACKET_PROBLEM,
    PACKET_REFUSED,
    PACKET_NOT_FOUND,
    PACKET_ABORTED,
    PACKET_LOST,
};
#define PACKET_KINDS 7u

struct packet_call {
    bool may_shut_down, is_last;
    const char *target, *service, *argument, *user;
};

/* What the agent says; only the fields that the type has mean something. */
struct packet_answer {
    enum packet_type type; /* STARTED or ENDED */
    enum packet_kind kind;
    uint8_t status, exit_status;
    char call[PACKET_ID_MAX + 1];
    char request[PACKET_ID_MAX + 1];
    char text[PACKET_TEXT_MAX + 1];
    char rule[PACKET_RULE_MAX + 1];
    char hint[PACKET_HINT_MAX + 1];
};

/* The word for a kind, as programs read it. */
const char *packet_kind_word(enum packet_kind kind);

/* How many bytes the character has that a text, which is not empty, begins with; 0 if it is not
 * UTF-8, or a control character. */
size_t packet_character(const char *text);

/* Each writes a datagram of at most PACKET_MAX bytes. Returns how many it has; 0 if a text is too
 * long, or has control characters, or is not UTF-8. */
size_t packet_build_call(const struct packet_call *call, uint8_t *bytes);
size_t packet_build_signal(uint8_t number, uint8_t *bytes);

/* Reads a datagram; false if it is none that an agent may send. */
bool packet_parse(struct packet_answer *answer, const uint8_t *bytes, size_t count);

#endif
