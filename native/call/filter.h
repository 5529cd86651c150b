/* What a terminal must not get from another VM. No input, no output. */
#ifndef PEDOS_CALL_FILTER_H
#define PEDOS_CALL_FILTER_H

#include <stddef.h>
#include <stdint.h>

/* Replaces each byte by '_' that is neither printable ASCII nor one of bell, backspace, tab, line
 * feed and carriage return: none of the others can begin an escape sequence then. */
void filter(uint8_t *bytes, size_t count);

#endif
