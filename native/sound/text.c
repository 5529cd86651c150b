#include "text.h"

#include "link.h"

#include <stdio.h>
#include <string.h>

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_letter_or_digit(char c)
{
    return is_letter(c) || (c >= '0' && c <= '9');
}

static bool is_made_of(const char *text, const char *others)
{
    for (; *text; text++)
        if (!is_letter_or_digit(*text) && !strchr(others, *text))
            return false;
    return true;
}

static bool is_control(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code <= 0x9f);
}

/* RFC 3629: no long forms, no halves of pairs, nothing beyond 0x10ffff. */
size_t text_character(const uint8_t *at, size_t count, uint32_t *code)
{
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length;

    if (!count)
        return 0;
    if (at[0] < 0x80) {
        *code = at[0];
        return 1;
    }
    length = at[0] < 0xc0 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : at[0] < 0xf8 ? 4 : 0;
    if (!length || length > count)
        return 0;
    *code = at[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (at[i] & 0x3f);
    }
    if (*code < LEAST[length] || *code > 0x10ffff || (*code >= 0xd800 && *code <= 0xdfff))
        return 0;
    return length;
}

bool text_is_line(const uint8_t *at, size_t count)
{
    for (size_t length, i = 0; i < count; i += length) {
        uint32_t code;

        length = text_character(at + i, count - i, &code);
        if (!length || is_control(code))
            return false;
    }
    return true;
}

bool text_is_vm(const char *text)
{
    return is_letter(*text) && strlen(text) <= LINK_VM_MAX && is_made_of(text, "_-");
}

bool text_is_device(const char *text)
{
    return is_letter_or_digit(*text) && strlen(text) <= LINK_DEVICE_MAX && is_made_of(text, "._-");
}

bool text_is_identity(const char *text)
{
    return strlen(text) <= LINK_IDENTITY_MAX && is_made_of(text, ":._-");
}

void text_to_line(char *out, size_t limit, const char *untrusted)
{
    const uint8_t *at = (const uint8_t *)(untrusted ? untrusted : "");
    size_t count = strnlen((const char *)at, 4 * limit + 4), used = 0;

    while (count) {
        uint32_t code;
        size_t length = text_character(at, count, &code), taken = length ? length : 1;
        bool is_kept = length && !is_control(code);

        if (used + (is_kept ? length : 1) > limit)
            break;
        if (is_kept)
            memcpy(out + used, at, length);
        else
            out[used] = '_';
        used += is_kept ? length : 1;
        at += taken;
        count -= taken;
    }
    out[used] = '\0';
}

/* FNV-1a: no secret is kept with it, it only has to tell names apart. */
static uint64_t checksum(const char *text)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);

    for (; *text; text++)
        sum = (sum ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    return sum;
}

void text_to_word(char *out, size_t limit, const char *untrusted, const char *others)
{
    size_t used = 0;
    bool is_changed = !is_letter_or_digit(*untrusted);

    for (const char *at = untrusted; *at && used < limit; at++) {
        bool is_kept = is_letter_or_digit(*at) || (used && strchr(others, *at));

        out[used] = is_kept ? *at : used ? '_' : 'x';
        used++;
        is_changed |= !is_kept;
    }
    out[used] = '\0';
    if (!is_changed && !untrusted[used])
        return;
    if (used > limit - 14)
        used = limit - 14;
    snprintf(out + used, 15, "%s.%012llx", used ? "" : "x",
             (unsigned long long)(checksum(untrusted) & UINT64_C(0xffffffffffff)));
    out[limit] = '\0';
}
