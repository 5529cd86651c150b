/* service_start.h describes this. */
#include "service_start.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void close_all(const int *fds, int count)
{
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Both ends of a stream, of which the service writes to the second. */
static int make(int fds[2], int is_pipe)
{
    return is_pipe ? pipe2(fds, O_CLOEXEC) : socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
}

int pv_service_streams(int *fds, int with_stderr)
{
    enum { ENDS = PV_SERVICE_FDS / 2, ERR = ENDS - 1 };
    int both[2], error;

    for (int i = 0; i < PV_SERVICE_FDS; i++)
        fds[i] = -1;
    for (int i = 0; i < (with_stderr ? ENDS : ERR); i++) {
        if (make(both, i == ERR) < 0) {
            error = -errno;
            close_all(fds, PV_SERVICE_FDS);
            return error;
        }
        fds[i] = both[0];
        fds[ENDS + i] = both[1];
    }
    return 0;
}

static int send_packet(int fd, const uint8_t *packet, size_t length, const int *fds, int count)
{
    union {
        char bytes[CMSG_SPACE(PV_KEEPER_FDS_MAX * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)packet, .iov_len = length};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE((size_t)count * sizeof *fds)};
    struct cmsghdr *rights;

    memset(&control, 0, sizeof control);
    rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN((size_t)count * sizeof *fds);
    memcpy(CMSG_DATA(rights), fds, (size_t)count * sizeof *fds);
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/*
 * The path as a socket's address has it: one that is too long is named by its folder, whose descriptor
 * is at *folder then, and has to be open while the address is used; or -1. 0, or -errno.
 */
static int name(struct sockaddr_un *address, const char *path, int *folder)
{
    char parent[PATH_MAX];
    const char *last = strrchr(path, '/');
    int size;

    *folder = -1;
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) < sizeof address->sun_path) {
        strcpy(address->sun_path, path);
        return 0;
    }
    if (!last || (size_t)(last - path) >= sizeof parent)
        return -ENAMETOOLONG;
    memcpy(parent, path, (size_t)(last - path));
    parent[last - path] = 0;
    *folder = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*folder < 0)
        return -errno;
    size = snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d%s", *folder, last);
    return size < (int)sizeof address->sun_path ? 0 : -ENAMETOOLONG;
}

/* The connection to the socket at a path, or -errno. */
static int connect_to(const char *path)
{
    struct sockaddr_un address;
    int folder, fd = -1, error = name(&address, path, &folder);

    if (!error) {
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
            error = -errno;
    }
    if (folder >= 0)
        close(folder);
    if (error && fd >= 0)
        close(fd);
    return error ? error : fd;
}

int pv_keeper_ask(const char *path, const uint8_t *packet, size_t length, int with_stderr, int *fds)
{
    int keeper = connect_to(path), streams[PV_SERVICE_FDS], error;
    int *ours = streams, *theirs = streams + PV_KEEPER_FDS_MAX;

    if (keeper < 0)
        return keeper;
    error = pv_service_streams(streams, with_stderr);
    if (!error) {
        error = send_packet(keeper, packet, length, theirs, PV_KEEPER_FDS_MAX - !with_stderr);
        close_all(theirs, PV_KEEPER_FDS_MAX);
        if (error)
            close_all(ours, PV_KEEPER_FDS_MAX);
    }
    if (error) {
        close(keeper);
        return error;
    }
    memcpy(fds, ours, PV_KEEPER_FDS_MAX * sizeof *fds);
    fds[PV_KEEPER_FDS_MAX] = keeper;
    return 0;
}
