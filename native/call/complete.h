/* Completion for the shell, which asks this program as it asks the others (cli/completions). */
#ifndef PEDOS_CALL_COMPLETE_H
#define PEDOS_CALL_COMPLETE_H

#include <stdbool.h>

/* Answers a shell; false if none asks. */
bool complete(void);

#endif
