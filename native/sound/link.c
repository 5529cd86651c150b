#include "link.h"

#include "text.h"

#include <string.h>

/* The fields of each type, in their order: v version, i id, f flag, l line, m VM, d device,
 * n identity, t description, D list of devices. */
static const struct form {
    enum link_side sender;
    const char *fields;
} FORMS[] = {
    [LINK_HELLO] = {LINK_FROM_SESSION, "vl"},
    [LINK_SERVER] = {LINK_FROM_SESSION, "l"},
    [LINK_DEVICES] = {LINK_FROM_SESSION, "D"},
    [LINK_READY] = {LINK_FROM_SESSION, "i"},
    [LINK_FAILED] = {LINK_FROM_SESSION, "il"},
    [LINK_LISTENING] = {LINK_FROM_SESSION, "if"},
    [LINK_ENDED] = {LINK_FROM_SESSION, "il"},
    [LINK_WELCOME] = {LINK_FROM_AGENT, "v"},
    [LINK_LEND] = {LINK_FROM_AGENT, "idnmf"},
    [LINK_BORROW] = {LINK_FROM_AGENT, "imdt"},
    [LINK_MUTE] = {LINK_FROM_AGENT, "if"},
    [LINK_CLOSE] = {LINK_FROM_AGENT, "i"},
    [LINK_REFUSED] = {LINK_FROM_AGENT, "l"},
};
#define TYPES (sizeof FORMS / sizeof *FORMS)

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

static uint32_t read_number(struct cursor *cursor, unsigned size)
{
    const uint8_t *at = step(cursor, size);
    uint32_t value = 0;

    for (unsigned i = size; at && i--;)
        value = value << 8 | at[i];
    return value;
}

static void write_number(struct cursor *cursor, uint32_t value, unsigned size)
{
    uint8_t *at = step(cursor, size);

    for (unsigned i = 0; at && i < size; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static bool is_text(char field, const char *text)
{
    switch (field) {
    case 'm':
        return text_is_vm(text);
    case 'd':
        return text_is_device(text);
    case 'n':
        return text_is_identity(text);
    }
    return text_is_line((const uint8_t *)text, strlen(text));
}

static void read_text(struct cursor *cursor, char field, char *text, size_t limit)
{
    size_t length = read_number(cursor, 2);
    const uint8_t *at = length > limit ? NULL : step(cursor, length);

    *text = '\0';
    if (!at || memchr(at, '\0', length)) {
        cursor->at = NULL;
        return;
    }
    memcpy(text, at, length);
    text[length] = '\0';
    if (!is_text(field, text))
        cursor->at = NULL;
}

static void write_text(struct cursor *cursor, char field, const char *text)
{
    size_t length = strlen(text);
    uint8_t *at;

    write_number(cursor, (uint32_t)length, 2);
    at = step(cursor, length);
    if (at && is_text(field, text))
        memcpy(at, text, length);
    else
        cursor->at = NULL;
}

static bool read_flag(struct cursor *cursor)
{
    uint32_t value = read_number(cursor, 1);

    if (value > 1)
        cursor->at = NULL;
    return value == 1;
}

static void read_devices(struct cursor *cursor, struct link_message *message,
                         struct link_device *devices)
{
    message->count = read_number(cursor, 2);
    message->devices = devices;
    if (message->count > LINK_DEVICES_MAX || !devices)
        cursor->at = NULL;
    for (unsigned i = 0; cursor->at && i < message->count; i++) {
        read_text(cursor, 'd', devices[i].id, LINK_DEVICE_MAX);
        read_text(cursor, 'n', devices[i].identity, LINK_IDENTITY_MAX);
        read_text(cursor, 't', devices[i].description, LINK_DESCRIPTION_MAX);
        devices[i].is_default = read_flag(cursor);
        for (unsigned j = 0; j < i; j++)
            if (!strcmp(devices[j].id, devices[i].id))
                cursor->at = NULL;
    }
}

static void write_devices(struct cursor *cursor, const struct link_message *message)
{
    write_number(cursor, message->count, 2);
    if (message->count > LINK_DEVICES_MAX)
        cursor->at = NULL;
    for (unsigned i = 0; cursor->at && i < message->count; i++) {
        write_text(cursor, 'd', message->devices[i].id);
        write_text(cursor, 'n', message->devices[i].identity);
        write_text(cursor, 't', message->devices[i].description);
        write_number(cursor, message->devices[i].is_default, 1);
    }
}

bool link_has_descriptor(enum link_type type)
{
    return type == LINK_LEND || type == LINK_BORROW;
}

bool link_parse(struct link_message *message, struct link_device *devices, enum link_side sender,
                const uint8_t *bytes, size_t count)
{
    /* What reads does not write. */
    struct cursor cursor = {(uint8_t *)bytes, (uint8_t *)bytes + count};
    uint32_t type = read_number(&cursor, 1);

    *message = (struct link_message){.type = (enum link_type)type};
    if (count > LINK_DATAGRAM_MAX || type >= TYPES || !FORMS[type].fields ||
        FORMS[type].sender != sender)
        return false;
    for (const char *field = FORMS[type].fields; *field; field++) {
        switch (*field) {
        case 'v':
            message->version = (uint16_t)read_number(&cursor, 2);
            break;
        case 'i':
            message->id = read_number(&cursor, 4);
            break;
        case 'f':
            message->flag = read_flag(&cursor);
            break;
        case 'l':
            read_text(&cursor, *field, message->line, LINK_LINE_MAX);
            break;
        case 'm':
            read_text(&cursor, *field, message->vm, LINK_VM_MAX);
            break;
        case 'd':
            read_text(&cursor, *field, message->device, LINK_DEVICE_MAX);
            break;
        case 'n':
            read_text(&cursor, *field, message->identity, LINK_IDENTITY_MAX);
            break;
        case 't':
            read_text(&cursor, *field, message->description, LINK_DESCRIPTION_MAX);
            break;
        default:
            read_devices(&cursor, message, devices);
        }
    }
    return cursor.at && cursor.at == cursor.end;
}

size_t link_build(const struct link_message *message, uint8_t *bytes)
{
    struct cursor cursor = {bytes, bytes + LINK_DATAGRAM_MAX};

    if (message->type >= TYPES || !FORMS[message->type].fields)
        return 0;
    write_number(&cursor, message->type, 1);
    for (const char *field = FORMS[message->type].fields; *field; field++) {
        switch (*field) {
        case 'v':
            write_number(&cursor, message->version, 2);
            break;
        case 'i':
            write_number(&cursor, message->id, 4);
            break;
        case 'f':
            write_number(&cursor, message->flag, 1);
            break;
        case 'l':
            write_text(&cursor, *field, message->line);
            break;
        case 'm':
            write_text(&cursor, *field, message->vm);
            break;
        case 'd':
            write_text(&cursor, *field, message->device);
            break;
        case 'n':
            write_text(&cursor, *field, message->identity);
            break;
        case 't':
            write_text(&cursor, *field, message->description);
            break;
        default:
            write_devices(&cursor, message);
        }
    }
    return cursor.at ? (size_t)(cursor.at - bytes) : 0;
}
