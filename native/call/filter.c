#include "filter.h"

#include <stdbool.h>

static bool is_harmless(uint8_t byte)
{
    switch (byte) {
    case '\a':
    case '\b':
    case '\t':
    case '\n':
    case '\r':
        return true;
    }
    return byte >= ' ' && byte <= '~';
}

void filter(uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!is_harmless(bytes[i]))
            bytes[i] = '_';
}
