/* The words of a call, before the agent is asked: it checks them too, but a byte that a message
 * cannot have, such as a line break, never gets there. */
#ifndef PEDOS_CALL_NAMES_H
#define PEDOS_CALL_NAMES_H

#include "packet.h"

#include <stdbool.h>

/* Whether each can be one; says which byte of which cannot. */
bool names_check(const struct packet_call *call);

#endif
