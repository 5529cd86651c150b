/*
 * How a domain announces its presence to another one. Shared by the files of the Xen attachment alone.
 */
#ifndef PEDOS_XEN_PRESENCE_H
#define PEDOS_XEN_PRESENCE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * libxenvchan builds "PATH/event-channel" in 64 bytes. The longest path that three numbers of ten
 * digits could make would not fit, but domain numbers have five digits.
 */
#define PATH_SIZE 50

/*
 * Shows the peer that this domain exists. -errno if xenstore refuses. Another
 * process of ours may remove the node while neither a rendezvous of ours for that peer stands nor
 * the peer announces its presence.
 */
int xen_show_presence(void *store, unsigned domain, unsigned peer)
    __attribute__((visibility("hidden")));

/* Removes what this domain has in xenstore for that peer, unless one of the two still needs it. */
void xen_hide_presence(void *store, unsigned domain, unsigned peer)
    __attribute__((visibility("hidden")));

/* Whether hiding is unnecessary: these nodes disappear by themselves, or are never made. */
bool xen_has_presence(unsigned domain, unsigned peer) __attribute__((visibility("hidden")));

/* Whether the peer announces its presence to this domain: xenstore's answer, or UNKNOWN. */
enum sight { THERE, GONE, UNKNOWN };
enum sight xen_see_presence(void *store, uint32_t transaction, unsigned domain, unsigned peer)
    __attribute__((visibility("hidden")));

#endif
