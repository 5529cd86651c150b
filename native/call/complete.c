#include "complete.h"

#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_FD 8 /* as argcomplete's functions read it */
#define BLANKS " \t\n"
#define BREAKS "\"'@><=;|&(:" /* bash's own, if the shell does not say */
#define CANDIDATES_MAX 4096u

/* The other VM's name is known to dom0 alone. */
static const char *const TARGETS[] = {"@adminvm", "@default", "@dispvm", NULL};

enum next { OPTION_OR_TARGET, VALUE, REST };

struct answer {
    char text[CANDIDATES_MAX];
    size_t length;
    const char *prefix, *separator;
    size_t kept; /* bytes of each candidate that the shell has already, in a word of its own */
};

static const char *variable(const char *name, const char *otherwise)
{
    const char *value = getenv(name);

    return value ? value : otherwise;
}

static bool takes_value(const char *word)
{
    if (!strcmp(word, "-p"))
        return true;
    for (const struct option *each = options_long(); each->name; each++)
        if (!strncmp(word, "--", 2) && !strcmp(word + 2, each->name))
            return each->has_arg == required_argument;
    return false;
}

/* What comes after these words, the first of which is this program. */
static enum next next_after(char *words)
{
    enum next next = OPTION_OR_TARGET;
    char *rest, *word = strtok_r(words, BLANKS, &rest);

    while (word && (word = strtok_r(NULL, BLANKS, &rest))) {
        if (next == VALUE)
            next = OPTION_OR_TARGET;
        else if (*word != '-')
            return REST;
        else if (takes_value(word))
            next = VALUE;
    }
    return next;
}

static void offer(struct answer *answer, const char *before, const char *word)
{
    char candidate[128];
    int length = snprintf(candidate, sizeof candidate, "%s%s", before, word);
    size_t left = sizeof answer->text - answer->length;

    if (strncmp(candidate, answer->prefix, strlen(answer->prefix)) || (size_t)length < answer->kept)
        return;
    length = snprintf(answer->text + answer->length, left, "%s%s",
                      answer->length ? answer->separator : "", candidate + answer->kept);
    if ((size_t)length < left)
        answer->length += (size_t)length;
}

bool complete(void)
{
    char line[CANDIDATES_MAX];
    struct answer answer = {.separator = variable("_ARGCOMPLETE_IFS", "\013")};
    const char *breaks = variable("_ARGCOMPLETE_COMP_WORDBREAKS", BREAKS);
    const char *whole = variable("COMP_LINE", "");
    size_t point = strtoul(variable("COMP_POINT", "4096"), NULL, 10), length = strlen(whole);
    char *word;

    if (!getenv("_ARGCOMPLETE"))
        return false;
    length = point < length ? point : length;
    if (length >= sizeof line)
        return true;
    memcpy(line, whole, length);
    line[length] = '\0';
    word = line + length;
    while (word > line && !strchr(BLANKS, word[-1]))
        word--;
    answer.prefix = *word == '\'' || *word == '"' ? word + 1 : word;
    /* bash replaces only what stands after the last break; in quotes there is none. */
    for (const char *at = answer.prefix; answer.prefix == word && *at; at++)
        if (strchr(breaks, *at))
            answer.kept = (size_t)(at + 1 - word);
    if (word > line)
        word[-1] = '\0'; /* the words before it; the prefix stays */
    if (word == line || next_after(line) != OPTION_OR_TARGET)
        return true; /* then the shell offers files */
    if (*answer.prefix == '-')
        for (const struct option *each = options_long(); each->name; each++)
            offer(&answer, "--", each->name);
    else
        for (const char *const *each = TARGETS; *each; each++)
            offer(&answer, "", *each);
    if (write(ANSWER_FD, answer.text, answer.length) < 0)
        return true; /* no shell reads it: only the variable was set */
    return true;
}
