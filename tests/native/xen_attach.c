/*
 * The interop program's attach.h on the real native/csrc/xen.c, instead of tests/interop/attach.c:
 * both ends of a channel are then set up by Debian's unmodified libxenvchan.
 */
#include "attach.h"

#include <errno.h>
#include <stdio.h>

#include "xen.h"

/* The numbers in /local/domain/SERVER/data/vchan/CLIENT, which is interop.c's path. The program's
   own end of "crossed" waits for the stand-in of the event channel, as before. */
enum { SERVER = 7, CLIENT = 3, PORT = 1 };

struct pv_channel *attach_server(unsigned peer, const char *path, unsigned left_order,
                                 unsigned right_order)
{
    struct pv_channel *channel = NULL;
    int error = pv_xen_serve(SERVER, peer, PORT, left_order, right_order, &channel);

    (void)path;
    if (!error)
        error = pv_channel_watch(channel, -1);
    errno = -error;
    if (error)
        fprintf(stderr, "pv_xen_serve: %d\n", error);
    return error ? NULL : channel;
}

struct pv_channel *attach_client(unsigned peer, const char *path)
{
    struct pv_channel *channel = NULL;
    int error = pv_xen_join(CLIENT, peer, PORT, &channel);

    (void)path;
    if (!error)
        error = pv_channel_watch(channel, -1);
    errno = -error;
    if (error)
        fprintf(stderr, "pv_xen_join: %d\n", error);
    return error ? NULL : channel;
}

int attach_client_came(const struct pv_channel *channel)
{
    return pv_channel_client_came(channel);
}
