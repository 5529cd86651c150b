/* What the agent says, told to people and to a program that reads --status-fd. */
#ifndef PEDOS_CALL_STATUS_H
#define PEDOS_CALL_STATUS_H

#include "packet.h"

#include <poll.h>
#include <stddef.h>

/* The longest line of JSON: each byte of a text may take six. */
#define STATUS_LINE 8192

struct status {
    int fd;                     /* -1: nobody asks for it, or it cannot be written */
    size_t start, end;          /* what is still to be written */
    char bytes[2 * STATUS_LINE]; /* a call has two lines */
};

/* A line of JSON each, which goes as soon as it can: that nobody reads there holds up no call. The
 * second one says with what status this program exits. */
void status_started(struct status *status, const struct packet_answer *answer);
void status_ended(struct status *status, const struct packet_answer *answer, int exit_status);

/* Writes what it waits for; its descriptor is -1 if there is nothing. */
void status_wait(const struct status *status, struct pollfd *wait);

/* Writes what goes at once. Says if it cannot be written: the call goes on. */
void status_go_on(struct status *status);

/* The last of it. Says if nobody has read it in time. */
void status_finish(struct status *status);

/* How the call has ended, on standard error, where the exit status alone would not tell. */
void status_say(const struct packet_answer *answer);

#endif
