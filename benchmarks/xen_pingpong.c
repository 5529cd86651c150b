/* 64 bytes to and fro over Debian's libxenvchan, or over our ring in the same place: two threads for
   two domains, on the stand-in Xen of the interop tests.  Prints nanoseconds per round trip.
   usage: xen_pingpong libxenvchan|ours CORE TRIPS */
#include <libxenvchan.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#define vchan_interface pv_vchan_interface /* the header's own and ours are one layout */
#include "attach.h"
#undef vchan_interface
#include "pingpong.h"
#include "standin.h"

#define PATH "/local/domain/7/data/vchan/3"

enum { SERVER = 7, CLIENT = 3, ORDER = 16 };

struct end {
    struct libxenvchan *theirs;
    struct pv_channel *ours; /* the one that is used is not NULL */
};

static int use_ours;
static long trips;
static pthread_barrier_t announced;

static struct end open_end(int serving)
{
    struct end end = {0};

    standin_domain = serving ? SERVER : CLIENT;
    if (!serving)
        pthread_barrier_wait(&announced);
    if (use_ours)
        end.ours = serving ? attach_server(CLIENT, PATH, ORDER, ORDER) : attach_client(SERVER, PATH);
    else
        end.theirs = serving ? libxenvchan_server_init(NULL, CLIENT, PATH, 1 << ORDER, 1 << ORDER)
                             : libxenvchan_client_init(NULL, SERVER, PATH);
    if (!end.ours && !end.theirs)
        die("xen_pingpong: no channel");
    if (end.theirs)
        end.theirs->blocking = 1; /* the library leaves it as malloc() did */
    if (serving)
        pthread_barrier_wait(&announced);
    return end;
}

static int64_t take_some(struct end *end, uint8_t *buffer, uint32_t most)
{
    uint8_t *span;
    int64_t count;

    if (end->theirs)
        return libxenvchan_read(end->theirs, buffer, most);
    while ((count = pv_channel_peek(end->ours, most, &span)) == PV_WOULD_BLOCK)
        end->ours->clear(end->ours); /* sleeps until there is an event, as the library does */
    if (count > 0) {
        memcpy(buffer, span, (size_t)count);
        pv_channel_consume(end->ours, (uint32_t)count);
    }
    return count;
}

static void take(struct end *end, uint8_t *buffer)
{
    for (uint32_t got = 0; got < MESSAGE;) {
        int64_t count = take_some(end, buffer + got, MESSAGE - got);

        if (count <= 0)
            die("xen_pingpong: the channel ended");
        got += (uint32_t)count;
    }
}

/* There is always room: one message is in flight. */
static void give(struct end *end, const uint8_t *buffer)
{
    int64_t count = end->theirs ? libxenvchan_write(end->theirs, buffer, MESSAGE)
                                : pv_channel_send(end->ours, buffer, MESSAGE);

    if (count != MESSAGE)
        die("xen_pingpong: the channel ended");
}

static void *serve(void *unused)
{
    uint8_t buffer[MESSAGE];
    struct end end = open_end(1);

    for (long i = 0; i < WARM_UP(trips) + trips; i++) {
        take(&end, buffer);
        give(&end, buffer);
    }
    return unused; /* nothing is closed: the process ends */
}

int main(int argc, char **argv)
{
    uint8_t buffer[MESSAGE] = {0};
    cpu_set_t core;
    pthread_t server;
    struct end end;
    long long start = 0;

    if (argc != 4)
        return 2;
    use_ours = !strcmp(argv[1], "ours");
    trips = atol(argv[3]);
    CPU_ZERO(&core);
    CPU_SET(atoi(argv[2]), &core);
    if (sched_setaffinity(0, sizeof core, &core))
        die("sched_setaffinity");
    pthread_barrier_init(&announced, NULL, 2);
    if (pthread_create(&server, NULL, serve, NULL))
        die("pthread_create");
    end = open_end(0);
    for (long i = 0; i < WARM_UP(trips) + trips; i++) {
        if (i == WARM_UP(trips))
            start = now_ns();
        give(&end, buffer);
        take(&end, buffer);
    }
    printf("%lld\n", (now_ns() - start) / trips);
    return pthread_join(server, NULL) != 0;
}
