/* Lets bench-warm.service run a program of the bench, which it has loaded: bench-peer, bench-look...
 *
 * One message carries the name that this program was called by, its arguments, and its standard
 * input, output and error. The service answers with one byte, the exit status. When this program
 * ends, the service ends the one that it runs.
 */
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define STANDARD 3
#define KILLED 137

int main(int argc, char **argv) {
    static char text[65536];
    size_t length = 0;
    argv[0] = basename(argv[0]);
    for (int i = 0; i < argc; i++) {
        size_t size = strlen(argv[i]) + 1;
        if (size > sizeof text - length) {
            fputs("bench: too many arguments\n", stderr);
            return 2;
        }
        memcpy(text + length, argv[i], size);
        length += size;
    }

    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/bench-warm.sock"};
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) < 0) {
        perror("bench: bench-warm.socket");
        return 1;
    }

    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(STANDARD * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = text, .iov_len = length};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(STANDARD * sizeof(int));
    memcpy(CMSG_DATA(&control.header), (int[]){0, 1, 2}, STANDARD * sizeof(int));
    if (sendmsg(connection, &message, MSG_NOSIGNAL) < 0) {
        perror("bench: bench-warm.service");
        return 1;
    }

    unsigned char status;
    ssize_t got;
    do
        got = recv(connection, &status, sizeof status, 0);
    while (got < 0 && errno == EINTR);
    return got == sizeof status ? status : KILLED;
}
