/* Texts from outside: sound servers, devices and the agent. */
#ifndef PEDOS_SOUND_TEXT_H
#define PEDOS_SOUND_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The length of the UTF-8 character there, in its shortest form; 0: there is none. */
size_t text_character(const uint8_t *at, size_t count, uint32_t *code);

/* Is it UTF-8 without control characters? */
bool text_is_line(const uint8_t *at, size_t count);

bool text_is_vm(const char *text);
bool text_is_device(const char *text);
bool text_is_identity(const char *text);

/*
 * What a stranger says, as one line of at most limit bytes (out has limit + 1): a byte that is no
 * character and a control character become '_', and a character is in it whole or not at all.
 * NULL is "".
 */
void text_to_line(char *out, size_t limit, const char *untrusted);

/*
 * What a stranger says, as an id or identity of at most limit bytes: letters, digits and those of
 * others, beginning with a letter or digit. Two different texts give two different ones: what is
 * changed or cut gets a checksum at its end. limit is at least 16.
 */
void text_to_word(char *out, size_t limit, const char *untrusted, const char *others);

#endif
