/* call_fd.h says why it is done this way. */
#include "call_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of one splice: what a pipe holds. */
#define SPLICED 65536u

/* What is thrown away at most: a socket's buffer is 208 KiB by default, and nothing follows it. */
#define THROWN_AWAY (4u << 20)

/* Nobody reads any more: that is an end. Any other error is not, as what was written is lost. */
static void note_error(struct pv_fd *fd, int error)
{
    if (error && error != EPIPE && !(fd->is_local && error == ECONNRESET))
        fd->error = error;
}

static ssize_t was_written(struct pv_fd *fd, ssize_t count)
{
    if (count > 0)
        return count;
    if (count == 0 || errno == EAGAIN || errno == EINTR)
        return PV_FD_LATER;
    note_error(fd, errno);
    return PV_FD_OVER;
}

/*
 * An error is no end: half of the data must not look like all of it. But a Unix socket is reset
 * whenever its other end was closed before it had read everything, and all that was sent has been
 * read by then.
 */
static ssize_t was_read(struct pv_fd *fd, ssize_t count)
{
    if (count > 0)
        return count;
    if (count == 0 || (fd->is_local && errno == ECONNRESET))
        return PV_FD_OVER;
    if (errno == EAGAIN || errno == EINTR)
        return PV_FD_LATER;
    fd->error = errno;
    return PV_FD_FAILED;
}

static int option(int number, int name)
{
    int value = -1;
    socklen_t size = sizeof value;

    return getsockopt(number, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

/* As pv_fd_look, and whether it is a stream socket. */
static int find_out(int number, int is_output, uint8_t *is_socket)
{
    struct statx status;
    int flags, way;

    *is_socket = 0;
    /* fstat(2) would ask a file system that may never answer; F_GETPIPE_SZ takes the pipe's lock. */
    if (statx(number, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) < 0)
        return PV_FD_OTHER;
    if (S_ISSOCK(status.stx_mode)) {
        *is_socket = option(number, SO_TYPE) == SOCK_STREAM;
        return *is_socket && !option(number, SO_ACCEPTCONN) ? PV_FD_FITS : PV_FD_NO_STREAM;
    }
    if (!S_ISFIFO(status.stx_mode))
        return PV_FD_OTHER;
    flags = fcntl(number, F_GETFL);
    way = flags & O_ACCMODE;
    if (flags >= 0 && !(flags & O_PATH) &&
        (way == O_RDWR || way == (is_output ? O_WRONLY : O_RDONLY)))
        return PV_FD_FITS;
    return PV_FD_WRONG_END;
}

int pv_fd_look(int number, int is_output)
{
    uint8_t ignored;

    return find_out(number, is_output, &ignored);
}

int pv_fd_fit(int fd_in, int fd_out, int fd_err)
{
    return pv_fd_look(fd_in, 0) == PV_FD_FITS && pv_fd_look(fd_out, 1) == PV_FD_FITS &&
           pv_fd_look(fd_err, 1) == PV_FD_FITS;
}

/* A description of our own for a FIFO, or a pipe of our own beside it. */
static int make_own(struct pv_fd *fd)
{
    char path[32];
    int own;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd->fd);
    own = open(path, (fd->is_output ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (own >= 0) {
        close(fd->fd);
        fd->fd = own;
        return 0;
    }
    /* Also an output that nobody reads: it then fails as it should when it is written to. */
    return pipe2(fd->relay, O_NONBLOCK | O_CLOEXEC) < 0 ? -errno : 0;
}

int pv_fd_take(struct pv_fd *fd, int number, int is_output, int shuts)
{
    int error;

    *fd = (struct pv_fd){.fd = number,
                         .relay = {-1, -1},
                         .is_output = (uint8_t)is_output,
                         .shuts = (uint8_t)shuts};
    if (number < 0)
        return 0;
    error = find_out(number, is_output, &fd->is_socket) != PV_FD_FITS ? -EINVAL
            : fd->is_socket                                           ? 0
                                                                      : make_own(fd);
    fd->is_local = fd->is_socket && option(number, SO_DOMAIN) == AF_UNIX;
    if (error)
        pv_fd_close(fd);
    return error;
}

ssize_t pv_fd_read(struct pv_fd *fd, struct iovec *parts, int count)
{
    size_t room = 0;
    ssize_t spliced;

    if (fd->fd < 0)
        return PV_FD_OVER;
    if (fd->is_socket) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};

        return was_read(fd, recvmsg(fd->fd, &message, MSG_DONTWAIT));
    }
    if (fd->relay[0] < 0)
        return was_read(fd, readv(fd->fd, parts, count));
    for (int i = 0; i < count; i++)
        room += parts[i].iov_len;
    /* The relay is empty: all of it goes on at once. */
    spliced = splice(fd->fd, NULL, fd->relay[1], NULL, room < SPLICED ? room : SPLICED,
                     SPLICE_F_NONBLOCK);
    if (spliced <= 0)
        return was_read(fd, spliced);
    return was_read(fd, readv(fd->relay[0], parts, count));
}

ssize_t pv_fd_flush(struct pv_fd *fd)
{
    while (fd->held) {
        ssize_t count =
            was_written(fd, splice(fd->relay[0], NULL, fd->fd, NULL, fd->held, SPLICE_F_NONBLOCK));

        if (count < 0)
            return count;
        fd->held -= (size_t)count;
    }
    return 0;
}

ssize_t pv_fd_write(struct pv_fd *fd, struct iovec *parts, int count)
{
    ssize_t written, flushed;

    if (fd->fd < 0)
        return PV_FD_OVER;
    if (fd->is_socket) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};

        return was_written(fd, sendmsg(fd->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
    }
    if (fd->relay[0] < 0)
        return was_written(fd, writev(fd->fd, parts, count));
    flushed = pv_fd_flush(fd);
    if (flushed < 0)
        return flushed;
    written = was_written(fd, writev(fd->relay[1], parts, count));
    if (written < 0)
        return written;
    fd->held += (size_t)written;
    flushed = pv_fd_flush(fd);
    return flushed == PV_FD_OVER ? PV_FD_OVER : written;
}

void pv_fd_hung_up(struct pv_fd *fd)
{
    if (fd->is_socket)
        note_error(fd, option(fd->fd, SO_ERROR));
}

static void throw_away(int fd)
{
    uint8_t bytes[16384];
    ssize_t count = 1;

    for (size_t sum = 0; count > 0 && sum < THROWN_AWAY; sum += (size_t)count)
        count = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
}

void pv_fd_close(struct pv_fd *fd)
{
    bool is_ours = fd->is_ours && !fd->is_output;

    if (fd->fd < 0)
        return;
    if (fd->is_socket && (fd->shuts || is_ours))
        shutdown(fd->fd, fd->is_output ? SHUT_WR : SHUT_RD);
    if (fd->is_socket && is_ours)
        throw_away(fd->fd);
    close(fd->fd);
    fd->fd = -1;
    fd->held = 0;
    for (int i = 0; i < 2; i++)
        if (fd->relay[i] >= 0)
            close(fd->relay[i]);
    fd->relay[0] = fd->relay[1] = -1;
}
