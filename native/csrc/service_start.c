/* service_start.h describes this. */
#include "service_start.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void close_all(const int *fds)
{
    for (int i = 0; i < PV_SERVICE_FDS; i++)
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
            close_all(fds);
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
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct cmsghdr *rights;

    if (count) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof *fds);
        rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN((size_t)count * sizeof *fds);
        memcpy(CMSG_DATA(rights), fds, (size_t)count * sizeof *fds);
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int pv_keeper_ask(const char *path, const uint8_t *packet, size_t length, const int *fds, int count)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, error;

    if (count < 0 || count > PV_KEEPER_FDS_MAX)
        return -EINVAL;
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        error = -errno;
    else
        error = send_packet(fd, packet, length, fds, count);
    if (!error)
        return fd;
    close(fd);
    return error;
}
