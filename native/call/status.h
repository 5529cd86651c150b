/* What the agent says, told to people and to a program that reads --status-fd. */
#ifndef PEDOS_CALL_STATUS_H
#define PEDOS_CALL_STATUS_H

#include "packet.h"

/* One line of JSON; fd may be -1. */
void status_write(int fd, const struct packet_answer *answer);

/* How the call has ended, on standard error, where the exit status alone would not tell. */
void status_say(const struct packet_answer *answer);

#endif
