/* What the service's three streams are connected to: the agent gets pipes and sockets as they are,
 * and a pipe of ours for everything else. */
#ifndef PEDOS_CALL_STREAMS_H
#define PEDOS_CALL_STREAMS_H

#include "copy.h"
#include "options.h"

#include <stdbool.h>

enum { STREAM_INPUT, STREAM_OUTPUT, STREAM_ERROR, STREAMS };

struct streams {
    int for_agent[STREAMS];      /* until streams_handed_over() */
    struct copy *copies[STREAMS]; /* NULL: the agent has the descriptor itself */
    int for_local[2];            /* the local program's standard input and output; or -1 */
    bool may_shut_down;          /* the sockets among them are nobody else's */
};

/* Finds out what each is, and makes what is missing. Says why not and returns false. */
bool streams_open(struct streams *streams, const struct options *options);

/* The agent has its descriptors: closes ours, so that what the service closes has an end. */
void streams_handed_over(struct streams *streams, const struct options *options);

#endif
