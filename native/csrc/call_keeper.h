/*
 * What the keeper of a service says of it, heard by the thread of the call (service's side).
 *
 * Of its packets (protocol/pedos_protocol/keeper_link.py) only the three that nearly every call has
 * are known here, each in the one form that a keeper gives it: Spawned and Connected without options,
 * and Ended. Every packet is looked at before it is taken, and any other one, or one that descriptors
 * came with against its form, is left where it is: what it means is for the agent to find out. So
 * nothing comes in here but what is written down in call_keeper.c, and one socket of a service.
 */
#ifndef PEDOS_CALL_KEEPER_H
#define PEDOS_CALL_KEEPER_H

#include <stdbool.h>
#include <stdint.h>

struct pv_call;

/* How far a call has come with its keeper. */
enum pv_keeper_state {
    PV_KEEPER_NONE,    /* there is none, or it has said its last word */
    PV_KEEPER_ASKED,   /* its first word is to come: nothing of the call runs yet */
    PV_KEEPER_SPAWNED, /* the service runs */
    PV_KEEPER_CONNECTED, /* the service is a socket; the keeper has nothing more to say */
};

/* The connection is the agent's, which neither closes it nor reads from it while the call runs. */
struct pv_keeper {
    uint8_t state; /* enum pv_keeper_state */
    int fd;        /* of no meaning in PV_KEEPER_NONE */
};

/* The descriptor to wait for; -1: there is nothing to hear. */
int pv_keeper_fd(const struct pv_keeper *keeper);

/* Before a call runs: has it follow the keeper at this descriptor, which has said that the service
 * runs, or is to say it. */
void pv_keeper_follow(struct pv_call *call, int fd, int has_spawned);

/*
 * Waits for the first word, if one is to come. True when the call is to run: the service does, with
 * the streams in `crewed` or with a socket that has taken their place there; or the agent has ended the
 * call meanwhile. False when the word is another one, and still to be read, with 0 at *error; or
 * cannot be read (EPROTO: a Connected without its one descriptor, which is lost). Then the call has no
 * keeper any more, and nothing else has happened to it.
 */
bool pv_keeper_meet(struct pv_call *call, int *error);

/* A service that is a socket has ended when both of its streams have. */
void pv_keeper_heed_streams(struct pv_call *call);

/* There may be a last word: the call ends as that says. */
void pv_keeper_hear(struct pv_call *call);

#endif
