#include "log.h"

#include <stdarg.h>
#include <stdio.h>

bool log_is_verbose;

static void say(const char *form, va_list values)
{
    fputs("pedos-sound: ", stderr);
    vfprintf(stderr, form, values);
    fputc('\n', stderr);
}

void log_warning(const char *form, ...)
{
    va_list values;

    va_start(values, form);
    say(form, values);
    va_end(values);
}

void log_detail(const char *form, ...)
{
    va_list values;

    if (!log_is_verbose)
        return;
    va_start(values, form);
    say(form, values);
    va_end(values);
}
