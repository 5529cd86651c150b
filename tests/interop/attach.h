/*
 * Attaches our channel the way Xen wants it: shared pages by grants, one event channel, rendezvous
 * in xenstore. Written against Xen's own headers and for tests alone; here the functions behind the
 * headers are standin.c's.
 */
#ifndef ATTACH_H
#define ATTACH_H

#include "channel.h"

/* A server for the one client domain peer, announced under the xenstore path. NULL: see errno. */
struct pv_channel *attach_server(unsigned peer, const char *path, unsigned left_order,
                                 unsigned right_order);

/* The client of the server that domain peer announced under path. NULL: see errno. */
struct pv_channel *attach_client(unsigned peer, const char *path);

/* Whether a client has attached itself to the server's channel. */
int attach_client_came(const struct pv_channel *channel);

#endif
