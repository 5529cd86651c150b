/* What this program says of itself, on standard error, a line each. */
#ifndef PEDOS_CALL_SAY_H
#define PEDOS_CALL_SAY_H

/* The exit status after a failure of this side: it is none of a shell's, and seldom a service's. */
#define SAY_FAILED 125

/* Under what name it speaks; to be called first. */
void say_as(const char *argv0);

__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* The first that it has said, and the first hint; "" if there is none. */
const char *say_first(void);
const char *say_first_hint(void);

/* A line below: what it is, with its colon, and that. */
void say_more(const char *what, const char *text);

/* A line below: what to do. */
void say_hint(const char *text);

#endif
