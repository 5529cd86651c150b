/* The peer of the round-trip rows: 64 bytes to and fro over a Unix stream socket, in C, between two
   processes on one core.  Prints nanoseconds per round trip, one line a round.
   usage: unix_pingpong CORE ROUNDS TRIPS */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64 };

static void transfer(ssize_t (*move)(int, char *), int fd, char *buffer) {
    if (move(fd, buffer) != MESSAGE) {
        perror("unix_pingpong");
        exit(1);
    }
}
static ssize_t take(int fd, char *buffer) { return recv(fd, buffer, MESSAGE, MSG_WAITALL); }
static ssize_t give(int fd, char *buffer) { return send(fd, buffer, MESSAGE, MSG_NOSIGNAL); }

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    static char buffer[MESSAGE];
    int pair[2];
    if (argc != 4) return 2;
    int rounds = atoi(argv[2]), trips = atoi(argv[3]);
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(atoi(argv[1]), &core);
    if (sched_setaffinity(0, sizeof core, &core) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
        perror("unix_pingpong");
        return 1;
    }
    pid_t child = fork();
    if (child == 0) {
        for (long i = 0; i < (long)rounds * trips; i++) {
            transfer(take, pair[1], buffer);
            transfer(give, pair[1], buffer);
        }
        return 0;
    }
    for (int round = 0; round < rounds; round++) {
        long long start = now_ns();
        for (int i = 0; i < trips; i++) {
            transfer(give, pair[0], buffer);
            transfer(take, pair[0], buffer);
        }
        printf("%lld\n", (now_ns() - start) / trips);
    }
    return waitpid(child, NULL, 0) < 0;
}
