#include "names.h"

#include "say.h"

#include <stdio.h>
#include <string.h>

#define ALPHANUMERIC "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

/* `others` are the characters beside letters and digits. */
static bool check(const char *what, const char *word, size_t limit, const char *others)
{
    char allowed[128], byte[32];
    size_t good;

    snprintf(allowed, sizeof allowed, "%s%s", ALPHANUMERIC, others);
    good = strspn(word, allowed);
    if (word[good]) {
        const unsigned char bad = (unsigned char)word[good];
        const bool is_seen = bad > ' ' && bad < 0x7F;

        snprintf(byte, sizeof byte, is_seen ? "'%c'" : "0x%02x", bad);
        say("usage: %s has the byte %s: letters, digits and each of %s are allowed", what, byte,
            others);
        return false;
    }
    if (strlen(word) > limit) {
        say("usage: %s has %zu bytes: at most %zu are allowed", what, strlen(word), limit);
        return false;
    }
    return true;
}

bool names_check(const struct packet_call *call)
{
    return check("TARGET", call->target, PACKET_TARGET_MAX, "._-@:") &&
           check("SERVICE", call->service, PACKET_SERVICE_MAX, "._-") &&
           check("ARGUMENT", call->argument, PACKET_ARGUMENT_MAX, "._-+") &&
           check("USER", call->user, PACKET_USER_MAX, "._-");
}
