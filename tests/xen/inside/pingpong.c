/*
 * A peer without any code of this project: plain C over the system's libxenvchan. The client sends
 * messages of 64 bytes and gets each back; then it sends BYTES one way. Each side prints what it
 * measured as one line of JSON: the client the round trip, the server the bulk speed. peer.py speaks the same.
 *
 *   bench-pingpong server|client DOMAIN XENSTORE_PATH TRIPS BYTES [ORDER]
 */
#include <libxenvchan.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64, CHUNK = 65536, TRIES = 300, PAUSE_US = 100000 };

static uint8_t buffer[CHUNK];

static double seconds(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void die(const char *what)
{
    fprintf(stderr, "bench-pingpong: %s\n", what);
    exit(1);
}

static void give(struct libxenvchan *chan, size_t count)
{
    if (libxenvchan_send(chan, buffer, count) != (int)count)
        die("cannot send");
}

static void take(struct libxenvchan *chan, size_t count)
{
    if (libxenvchan_recv(chan, buffer, count) != (int)count)
        die("cannot receive");
}

static void receive(struct libxenvchan *chan, long long bytes)
{
    double start = 0;

    for (long long left = bytes; left > 0;) {
        int count;

        if (left == bytes - 1)
            start = seconds(); /* from the first byte on: the other program may start slowly */
        count = libxenvchan_read(chan, buffer, left == bytes ? 1 : left < CHUNK ? (size_t)left : CHUNK);

        /* At a close the library says -1 while bytes are left; the next call gives them. */
        if (count <= 0 && libxenvchan_data_ready(chan) <= 0)
            die("the stream ended early");
        left -= count > 0 ? count : 0;
    }
    if (bytes)
        printf("{\"bulk_mb_s\": %.2f}\n", (double)bytes / (seconds() - start) / 1e6);
}

static void send_all(struct libxenvchan *chan, long long bytes)
{
    int room = libxenvchan_buffer_space(chan);

    for (long long left = bytes; left > 0;) {
        int count = libxenvchan_write(chan, buffer, left < CHUNK ? (size_t)left : CHUNK);

        if (count <= 0)
            die("cannot write");
        left -= count;
    }
    /* What is in the ring when it is closed may be lost to a reader that uses the library. */
    while (libxenvchan_is_open(chan) && libxenvchan_buffer_space(chan) < room)
        usleep(1000);
}

int main(int argc, char **argv)
{
    struct libxenvchan *chan = NULL;
    int serving = argc > 1 && !strcmp(argv[1], "server");
    long trips, order;
    long long bytes;
    double start;

    if (argc < 6)
        die("usage: bench-pingpong server|client DOMAIN XENSTORE_PATH TRIPS BYTES [ORDER]");
    trips = atol(argv[4]);
    bytes = atoll(argv[5]);
    order = argc > 6 ? atol(argv[6]) : 16;
    for (int i = 0; !chan && i < TRIES; i++) {
        chan = serving ? libxenvchan_server_init(NULL, atoi(argv[2]), argv[3], 1u << order, 1u << order)
                       : libxenvchan_client_init(NULL, atoi(argv[2]), argv[3]);
        if (!chan)
            usleep(PAUSE_US);
    }
    if (!chan)
        die("no channel");
    chan->blocking = 1; /* init leaves it as malloc() did */
    if (serving) {
        for (long i = 0; i < trips; i++) {
            take(chan, MESSAGE);
            give(chan, MESSAGE);
        }
        receive(chan, bytes);
    } else {
        /* The first third is not timed, as in peer.py: both are cold then, each in its own way. */
        long untimed = trips / 3;

        start = seconds();
        for (long i = 0; i < trips; i++) {
            if (i == untimed)
                start = seconds();
            give(chan, MESSAGE);
            take(chan, MESSAGE);
        }
        if (trips)
            printf("{\"round_trip_us\": %.1f}\n", (seconds() - start) / (double)(trips - untimed) * 1e6);
        send_all(chan, bytes);
    }
    libxenvchan_close(chan);
    return 0;
}
