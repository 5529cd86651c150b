/* The local program, which is connected to the service. */
#ifndef PEDOS_CALL_LOCAL_H
#define PEDOS_CALL_LOCAL_H

#include <stdbool.h>
#include <sys/types.h>

struct local {
    pid_t pid;
    int pidfd; /* readable once it has ended; -1 before its start and after its end */
    int exit_status;
};

/* Starts it with these two as standard input and output, which it takes over; our own it finds where
 * SAVED_FD_0 and SAVED_FD_1 say. Says why not and returns false. */
bool local_start(struct local *local, char **arguments, const int descriptors[2]);

/* It has ended: notes how. */
void local_ended(struct local *local);

#endif
