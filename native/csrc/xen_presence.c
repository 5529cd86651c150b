#include "xen_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * A domain shows a peer that it is there by a node that only the peer may read, beside it, and that
 * the toolstack removes with the domain. All channels with that peer share it, of all processes, so
 * none of them takes it away; but every start of a VM gives it a new number, and a domain that lives
 * long would gather nodes of dead ones until its quota in xenstore (1000 nodes) is used up.
 */
#define PRESENCES_KEPT 16u /* so many are never looked through; as many VMs are few */

static void presence_path(char path[PATH_SIZE], unsigned domain, unsigned peer)
{
    snprintf(path, PATH_SIZE, "/local/domain/%u/data/vchan/%u", domain, peer);
}

/* Nothing is announced there, and the peer does not show itself to us: then nobody looks for it. */
static bool is_left_over(void *store, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];
    unsigned count = 0;
    char **ports;
    void *shown;

    presence_path(path, domain, peer);
    ports = xen.xs_directory(store, NO_TRANSACTION, path, &count);
    free(ports);
    if (!ports || count > 0)
        return false;
    presence_path(path, peer, domain);
    shown = xen.xs_read(store, NO_TRANSACTION, path, NULL);
    free(shown);
    return !shown && (errno == ENOENT || errno == EACCES);
}

static void tidy_up(void *store, unsigned domain, unsigned peer)
{
    char path[PATH_SIZE];
    unsigned count = 0;
    char **names;

    snprintf(path, sizeof path, "/local/domain/%u/data/vchan", domain);
    names = xen.xs_directory(store, NO_TRANSACTION, path, &count);
    for (unsigned i = 0; names && count > PRESENCES_KEPT && i < count; i++) {
        char *end;
        unsigned long other = strtoul(names[i], &end, 10);

        if (*end || end == names[i] || other == peer || other >= DOMAIN_SELF)
            continue;
        if (is_left_over(store, domain, (unsigned)other)) {
            presence_path(path, domain, (unsigned)other);
            xen.xs_rm(store, NO_TRANSACTION, path);
        }
    }
    free(names);
}

int xen_show_presence(void *store, unsigned domain, unsigned peer)
{
    struct xs_permissions permissions[2] = {{.domain = domain, .bits = MAY_NOT},
                                            {.domain = peer, .bits = MAY_READ}};
    char path[PATH_SIZE];

    presence_path(path, domain, peer);
    if (!xen.xs_write(store, NO_TRANSACTION, path, "", 0) ||
        !xen.xs_set_permissions(store, NO_TRANSACTION, path, permissions, 2))
        return errno ? -errno : -EIO;
    tidy_up(store, domain, peer);
    return 0;
}
