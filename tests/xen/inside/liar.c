/*
 * A hostile peer: it joins a server as the library does, and then claims more bytes than fit into
 * the ring. It ends when the server closes the channel.
 *
 *   bench-liar DOMAIN XENSTORE_PATH
 */
#include <libxenvchan.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xenevtchn.h>

enum { TRIES = 300, PAUSE_US = 100000, TOO_MUCH = 1 << 30 };

int main(int argc, char **argv)
{
    struct libxenvchan *chan = NULL;

    if (argc != 3)
        return 2;
    for (int i = 0; !chan && i < TRIES; i++) {
        chan = libxenvchan_client_init(NULL, atoi(argv[1]), argv[2]);
        if (!chan)
            usleep(PAUSE_US);
    }
    if (!chan)
        return 1;
    __atomic_store_n(&chan->ring->left.prod, TOO_MUCH, __ATOMIC_SEQ_CST);
    xenevtchn_notify(chan->event, chan->event_port);
    for (int i = 0; libxenvchan_is_open(chan) && i < TRIES; i++)
        usleep(PAUSE_US);
    printf("{\"believed\": %s}\n", libxenvchan_is_open(chan) ? "true" : "false");
    return 0;
}
