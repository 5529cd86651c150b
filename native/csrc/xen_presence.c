#include "xen_presence.h"
#include "xen_load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * A domain announces its presence to a peer by a node that only the peer may read, beside it, and
 * that the toolstack removes with the domain. All channels with that peer share the node, across
 * processes, so none of them removes it while the peer announces its presence, too. When the peer's
 * domain has ended, its own node is gone, and the survivor removes this one: with the channel, or,
 * if that was closed before, with the next channel of all. So xenstore has nodes only for peers
 * that live.
 *
 * dom0 announces itself to no domain: it ends after all others, and its nodes would never be
 * removed.
 */

/* Attempts at a look and its consequence, when another process changes the same nodes meanwhile. */
#define TRIES 5

static void presence_path(char path[PATH_SIZE], unsigned domain, unsigned peer)
{
    snprintf(path, PATH_SIZE, "/local/domain/%u/data/vchan/%u", domain, peer);
}

bool xen_has_presence(unsigned domain, unsigned peer)
{
    return domain != 0 && peer != 0;
}

enum sight xen_see_presence(void *store, uint32_t transaction, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];
    void *value;

    presence_path(path, peer, domain);
    value = xen.xs_read(store, transaction, path, NULL);
    free(value);
    if (value)
        return THERE;
    return errno == ENOENT || errno == EACCES ? GONE : UNKNOWN;
}

/* No server is announced there, and the peer does not announce its presence: do not look for it
 * then. */
static bool is_left_over(void *store, uint32_t transaction, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];
    unsigned count = 0;
    char **ports;

    presence_path(path, domain, peer);
    ports = xen.xs_directory(store, transaction, path, &count);
    free(ports);
    if (!ports || count > 0)
        return false;
    if (domain == 0)
        return true; /* what servers of ours announced below it */
    if (peer == 0)
        return false; /* dom0 may look for it, announces nothing; it goes with us */
    return xen_see_presence(store, transaction, domain, peer) == GONE;
}

/* In a transaction: between the look and the removal another process may announce a server there.
 * */
void xen_hide_presence(void *store, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];

    presence_path(path, domain, peer);
    for (int i = 0; i < TRIES; i++) {
        uint32_t transaction = xen.xs_transaction_start(store);
        bool removes;

        if (transaction == NO_TRANSACTION)
            return; /* it stays until the next channel to be removed */
        removes = is_left_over(store, transaction, domain, peer) &&
                  xen.xs_rm(store, transaction, path);
        if (xen.xs_transaction_end(store, transaction, !removes) || errno != EAGAIN)
            return;
    }
}

static void tidy_up(void *store, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];
    unsigned count = 0;
    char **names;

    snprintf(path, sizeof path, "/local/domain/%u/data/vchan", domain);
    names = xen.xs_directory(store, NO_TRANSACTION, path, &count);
    for (unsigned i = 0; names && i < count; i++) {
        char *end;
        unsigned long other = strtoul(names[i], &end, 10);

        if (*end || end == names[i] || other == peer || other >= DOMAIN_SELF)
            continue;
        if (is_left_over(store, NO_TRANSACTION, domain, (unsigned)other))
            xen_hide_presence(store, domain, (unsigned)other);
    }
    free(names);
}

int xen_show_presence(void *store, unsigned domain, unsigned peer)
{
    struct xs_permissions permissions[2] = {{.domain = domain, .bits = MAY_NOT},
                                            {.domain = peer, .bits = MAY_READ}};
    char path[PATH_SIZE];

    tidy_up(store, domain, peer);
    if (domain == 0)
        return 0;
    presence_path(path, domain, peer);
    if (!xen.xs_write(store, NO_TRANSACTION, path, "", 0) ||
        !xen.xs_set_permissions(store, NO_TRANSACTION, path, permissions, 2))
        return errno ? -errno : -EIO;
    return 0;
}
