/* What the round-trip rows compare with: 64 bytes to and fro over a Unix stream socket, in C,
   between two processes.  Prints nanoseconds per round trip.
   usage: unix_pingpong CORE CORE TRIPS */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pingpong.h"

static void transfer(ssize_t (*move)(int, char *), int fd, char *buffer)
{
    if (move(fd, buffer) != MESSAGE)
        die("unix_pingpong");
}

static ssize_t take(int fd, char *buffer)
{
    return recv(fd, buffer, MESSAGE, MSG_WAITALL);
}

static ssize_t give(int fd, char *buffer)
{
    return send(fd, buffer, MESSAGE, MSG_NOSIGNAL);
}

int main(int argc, char **argv)
{
    static char buffer[MESSAGE];
    int pair[2];
    long trips;
    long long start;

    if (argc != 4)
        return 2;
    trips = atol(argv[3]);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        die("socketpair");
    if (fork_pinned(atoi(argv[1]), atoi(argv[2])) == 0) {
        for (long i = 0; i < WARM_UP(trips) + trips; i++) {
            transfer(take, pair[1], buffer);
            transfer(give, pair[1], buffer);
        }
        return 0;
    }
    for (long i = 0; i < WARM_UP(trips); i++) {
        transfer(give, pair[0], buffer);
        transfer(take, pair[0], buffer);
    }
    start = now_ns();
    for (long i = 0; i < trips; i++) {
        transfer(give, pair[0], buffer);
        transfer(take, pair[0], buffer);
    }
    printf("%lld\n", (now_ns() - start) / trips);
    return wait(NULL) < 0;
}
