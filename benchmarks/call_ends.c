/* The programs at the ends of a call, for rows R6, R7 and R8.  Prints nanoseconds.
   usage: call_ends trips FD_IN FD_OUT TRIPS      64 bytes to and fro; per trip, after a tenth to warm up
          call_ends echo FD_IN FD_OUT             the other end of it, until the end of file
          call_ends send FD_FILE FD_OUT BYTES     the file's bytes, by splice(2) into a pipe
          call_ends take FD_IN FD_FILE BYTES      a service that writes them to a file, as from a socket
          call_ends zeros FD_OUT                  zeros without end
          call_ends gulp FD_IN MILLISECONDS       throws away what comes; prints bytes, after as long
                                                  to warm up */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pingpong.h"

#define CHUNK (128 * 1024)

static char buffer[CHUNK];

static void read_whole(int fd, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t count = read(fd, buffer + done, size - done);

        if (count <= 0)
            die("read");
        done += (size_t)count;
    }
}

static void write_whole(int fd, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t count = write(fd, buffer + done, size - done);

        if (count < 0)
            die("write");
        done += (size_t)count;
    }
}

static void trips(int in, int out, long count)
{
    long long start = 0;

    for (long i = -WARM_UP(count); i < count; i++) {
        if (i == 0)
            start = now_ns();
        write_whole(out, MESSAGE);
        read_whole(in, MESSAGE);
    }
    printf("%lld\n", (now_ns() - start) / count);
}

static void echo(int in, int out)
{
    ssize_t count;

    while ((count = read(in, buffer, sizeof buffer)) > 0)
        write_whole(out, (size_t)count);
}

static void send_file(int in, int out, long long size)
{
    while (size > 0) {
        ssize_t count = splice(in, NULL, out, NULL, size < CHUNK ? (size_t)size : CHUNK,
                               SPLICE_F_MOVE);

        if (count <= 0)
            die("splice");
        size -= count;
    }
}

static void take_file(int in, int out, long long size)
{
    long long start = now_ns();

    for (long long left = size; left > 0;) {
        ssize_t count = read(in, buffer, left < CHUNK ? (size_t)left : CHUNK);

        if (count <= 0)
            die("read");
        write_whole(out, (size_t)count);
        left -= count;
    }
    printf("%lld\n", now_ns() - start);
}

static void gulp(int in, long milliseconds)
{
    long long start = now_ns(), middle = start + milliseconds * 1000000ll, bytes = 0;
    long long end = middle + milliseconds * 1000000ll, now;

    do {
        ssize_t count = read(in, buffer, sizeof buffer);

        if (count <= 0)
            die("read");
        now = now_ns();
        if (now >= middle)
            bytes += count;
    } while (now < end);
    printf("%lld\n", bytes);
}

int main(int argc, char **argv)
{
    const char *job = argc > 1 ? argv[1] : "";
    int one = argc > 2 ? atoi(argv[2]) : -1, two = argc > 3 ? atoi(argv[3]) : -1;
    long long number = argc > 4 ? atoll(argv[4]) : 0;

    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(job, "trips")) {
        trips(one, two, (long)number);
    } else if (!strcmp(job, "echo")) {
        echo(one, two);
    } else if (!strcmp(job, "send")) {
        send_file(one, two, number);
    } else if (!strcmp(job, "take")) {
        take_file(one, two, number);
    } else if (!strcmp(job, "zeros")) {
        while (write(one, buffer, sizeof buffer) > 0)
            ;
    } else if (!strcmp(job, "gulp")) {
        gulp(one, two);
    } else {
        return 2;
    }
    return 0;
}
