#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *name = "qvm-call";
static char first[512], first_hint[256];

void say_as(const char *argv0)
{
    const char *slash = argv0 ? strrchr(argv0, '/') : NULL;

    if (argv0 && *argv0)
        name = slash ? slash + 1 : argv0;
}

void say(const char *format, ...)
{
    va_list values;
    char text[2048];

    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    if (!*first)
        snprintf(first, sizeof first, "%.*s", (int)sizeof first - 1, text);
    /* In one piece: others write there, too. */
    dprintf(2, "%s: %s\n", name, text);
}

const char *say_first(void)
{
    return first;
}

const char *say_first_hint(void)
{
    return first_hint;
}

void say_hint(const char *text)
{
    if (!*first_hint)
        snprintf(first_hint, sizeof first_hint, "%s", text);
    say_more("try:  ", text);
}

void say_more(const char *what, const char *text)
{
    dprintf(2, "  %s%s\n", what, text);
}
