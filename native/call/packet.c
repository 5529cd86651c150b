#include "packet.h"

#include <string.h>

/* Bytes that are read or written, up to end. at is NULL once they did not suffice or were wrong. */
struct cursor {
    uint8_t *at, *end;
};

static uint8_t *step(struct cursor *cursor, size_t count)
{
    uint8_t *here = cursor->at;

    if (!here || (size_t)(cursor->end - here) < count) {
        cursor->at = NULL;
        return NULL;
    }
    cursor->at += count;
    return here;
}

static unsigned read_number(struct cursor *cursor, unsigned size)
{
    const uint8_t *at = step(cursor, size);
    unsigned value = 0;

    for (unsigned i = size; at && i--;)
        value = value << 8 | at[i];
    return value;
}

static void write_number(struct cursor *cursor, unsigned value, unsigned size)
{
    uint8_t *at = step(cursor, size);

    for (unsigned i = 0; at && i < size; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

/* How many bytes the character has that begins here; 0 if it is not UTF-8, or a control character. */
static size_t character(const uint8_t *at, size_t left)
{
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = *at < 0x80 ? 1 : *at >= 0xF0 ? 4 : *at >= 0xE0 ? 3 : 2;
    uint32_t code = length == 1 ? *at : *at & (0x7Fu >> length);

    if (length > left || (*at >= 0x80 && *at < 0xC0) || *at >= 0xF8)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xC0) != 0x80)
            return 0;
        code = code << 6 | (at[i] & 0x3F);
    }
    if (code < LEAST[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        return 0;
    return code < ' ' || (code >= 0x7F && code < 0xA0) ? 0 : length;
}

size_t packet_character(const char *text)
{
    return character((const uint8_t *)text, strlen(text));
}

static bool is_line(const uint8_t *text, size_t length)
{
    for (size_t at = 0, step; at < length; at += step)
        if (!(step = character(text + at, length - at)))
            return false;
    return true;
}

static void read_text(struct cursor *cursor, char *text, size_t limit)
{
    size_t length = read_number(cursor, 2);
    const uint8_t *at = length > limit ? NULL : step(cursor, length);

    *text = '\0';
    if (!at || !is_line(at, length)) {
        cursor->at = NULL;
        return;
    }
    memcpy(text, at, length);
    text[length] = '\0';
}

static void write_text(struct cursor *cursor, const char *text, size_t limit)
{
    size_t length = strlen(text);
    uint8_t *at;

    write_number(cursor, (unsigned)length, 2);
    at = length > limit ? NULL : step(cursor, length);
    if (at && is_line((const uint8_t *)text, length))
        memcpy(at, text, length);
    else
        cursor->at = NULL;
}

const char *packet_kind_word(enum packet_kind kind)
{
    static const char *const WORDS[] = {
        [PACKET_EXITED] = "exited",       [PACKET_SIGNALLED] = "signalled",
        [PACKET_PROBLEM] = "problem",     [PACKET_REFUSED] = "refused",
        [PACKET_NOT_FOUND] = "not_found", [PACKET_ABORTED] = "aborted",
        [PACKET_LOST] = "lost",
    };

    return WORDS[kind];
}

size_t packet_build_call(const struct packet_call *call, uint8_t *bytes)
{
    struct cursor cursor = {bytes, bytes + PACKET_MAX};

    write_number(&cursor, PACKET_CALL, 1);
    write_number(&cursor, PACKET_VERSION, 2);
    write_number(&cursor, call->may_shut_down, 1);
    write_text(&cursor, call->target, PACKET_TARGET_MAX);
    write_text(&cursor, call->service, PACKET_SERVICE_MAX);
    write_text(&cursor, call->argument, PACKET_ARGUMENT_MAX);
    write_text(&cursor, call->user, PACKET_USER_MAX);
    write_number(&cursor, call->is_last, 1);
    return cursor.at ? (size_t)(cursor.at - bytes) : 0;
}

size_t packet_build_signal(uint8_t number, uint8_t *bytes)
{
    bytes[0] = PACKET_SIGNAL;
    bytes[1] = number;
    return 2;
}

bool packet_parse(struct packet_answer *answer, const uint8_t *bytes, size_t count)
{
    /* What reads does not write. */
    struct cursor cursor = {(uint8_t *)bytes, (uint8_t *)bytes + count};
    unsigned kind;

    memset(answer, 0, sizeof *answer);
    answer->type = (enum packet_type)read_number(&cursor, 1);
    if (count > PACKET_MAX)
        return false;
    switch (answer->type) {
    case PACKET_STARTED:
        read_text(&cursor, answer->call, PACKET_ID_MAX);
        read_text(&cursor, answer->request, PACKET_ID_MAX);
        break;
    case PACKET_ENDED:
        kind = read_number(&cursor, 1);
        if (!kind || kind > PACKET_KINDS)
            return false;
        answer->kind = (enum packet_kind)kind;
        answer->status = (uint8_t)read_number(&cursor, 1);
        answer->exit_status = (uint8_t)read_number(&cursor, 1);
        read_text(&cursor, answer->text, PACKET_TEXT_MAX);
        read_text(&cursor, answer->rule, PACKET_RULE_MAX);
        read_text(&cursor, answer->hint, PACKET_HINT_MAX);
        read_text(&cursor, answer->request, PACKET_ID_MAX);
        break;
    default:
        return false;
    }
    return cursor.at && cursor.at == cursor.end;
}
