/* The command line of pedos-sound. */
#ifndef PEDOS_SOUND_OPTIONS_H
#define PEDOS_SOUND_OPTIONS_H

#include <stdbool.h>

struct options {
    const char *socket; /* NULL: the usual ones */
    bool is_verbose;
};

/* Fills options, or ends the program: after --help and --version, or with status 2. */
void options_parse(struct options *options, int argc, char **argv);

#endif
