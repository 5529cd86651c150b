/* The command line. */
#ifndef PEDOS_CALL_OPTIONS_H
#define PEDOS_CALL_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>

/* The longest target, service and argument, and more. */
#define OPTIONS_WORD 1024

struct options {
    const char *program; /* how this one was called */
    char target[OPTIONS_WORD];
    char service[OPTIONS_WORD];
    char argument[OPTIONS_WORD]; /* with its "+" */
    const char *user;            /* "": the default one */
    const char *prefix;          /* "": none */
    bool filters_stdout, filters_stderr;
    bool uses_stdin_socket;
    bool forwards_signals;
    int status_fd; /* -1: none */
    char **local;  /* the local program and its arguments; NULL: there is none */
};

/* Ends the program after --help and --version, and with a sentence if something is wrong. */
void options_parse(struct options *options, int argc, char **argv);

/* All long options; the last one has no name. */
const struct option *options_long(void);

#endif
