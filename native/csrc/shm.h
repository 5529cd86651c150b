/*
 * Attaches a channel to a memfd and two eventfds: vchan between two processes of one machine. The
 * caller transports the descriptors (shm.py: SCM_RIGHTS over a Unix socket).
 *
 * Not checked: that the peer leaves the event descriptors as they are. Both sides share them, so a
 * peer could make them blocking later and stall us. Processes of one user could do worse to each
 * other; between real domains there are no such descriptors.
 */
#ifndef PEDOS_SHM_H
#define PEDOS_SHM_H

#include "channel.h"

/*
 * The server's side: a sealed memfd with a fresh page, and two eventfds. Returns 0 or -errno.
 * descriptors are for the client: memfd, the eventfd that it waits on, the one that it notifies.
 * The caller closes the memfd; the eventfds stay the channel's.
 */
int pv_shm_create(unsigned left_order, unsigned right_order, struct pv_channel **channel,
                  int descriptors[3]);

/*
 * The client's side, from descriptors that a peer made and that are therefore checked first: seals,
 * size and orders of the memfd, non-blocking event descriptors. Returns 0 or -errno (-EPROTO: they
 * are no such set). On success the two event descriptors belong to the channel; the caller closes
 * the memfd either way.
 */
int pv_shm_join(int memfd, int event_fd, int notify_fd, struct pv_channel **channel);

#endif
