/* The connection to this VM's agent, which carries the call. */
#ifndef PEDOS_CALL_AGENT_H
#define PEDOS_CALL_AGENT_H

#include "packet.h"

#include <stdbool.h>
#include <stdint.h>

/* Connects to the agent's call socket: the one that PEDOS_CALL_SOCKET names, or that of the system
 * that PEDOS_SOCKET names, or the usual one. Returns the socket, or says why not and returns -1. */
int agent_connect(void);

/* Asks for the call, and gives the agent three descriptors. Says why not and returns false. */
bool agent_ask(int agent, const struct packet_call *call, const int descriptors[3]);

/* What the agent says next; waits for it. False if it has gone, or says what it may not. */
bool agent_hear(int agent, struct packet_answer *answer);

/* Passes a signal on to the service. */
void agent_signal(int agent, uint8_t number);

/* Hangs up: the call is to end. The agent still says how it has. */
void agent_hang_up(int agent);

#endif
