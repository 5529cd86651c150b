#include "copy.h"

#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes for the kernel to move at once. */
#define SPLICE_SIZE (1024 * 1024)

static bool is_kind(int fd, mode_t kind)
{
    struct stat status;

    return !fstat(fd, &status) && (status.st_mode & S_IFMT) == kind;
}

struct copy *copy_new(int from, int to, const char *prefix, bool is_filtered)
{
    struct copy *copy = calloc(1, sizeof *copy);
    size_t length = strlen(prefix);

    if (!copy || length > COPY_SIZE) {
        free(copy);
        errno = copy ? E2BIG : ENOMEM;
        return NULL;
    }
    copy->from = from;
    copy->to = to;
    copy->is_filtered = is_filtered;
    copy->is_patient = is_kind(to, S_IFREG);
    copy->is_socket = is_kind(to, S_IFSOCK);
    copy->is_pipe = is_kind(to, S_IFIFO) && (fcntl(to, F_GETFL) & O_NONBLOCK);
    /* Only where one side is always ready: of EAGAIN nobody could tell which of two it is about. */
    copy->is_spliced =
        !is_filtered && (is_kind(from, S_IFREG) ? copy->is_pipe : copy->is_patient);
    memcpy(copy->buffer, prefix, length);
    copy->end = length;
    return copy;
}

static void shut(int *fd)
{
    if (*fd != -1)
        close(*fd);
    *fd = -1;
}

/* All is written; but some files say only when they are closed that it was not. */
static void finish(struct copy *copy)
{
    if (copy->to != -1 && close(copy->to) < 0 && errno != EINTR)
        copy->write_error = errno;
    copy->to = -1;
}

void copy_stop(struct copy *copy)
{
    shut(&copy->from);
    shut(&copy->to);
    copy->start = copy->end = 0;
}

bool copy_is_over(const struct copy *copy)
{
    return copy->to == -1;
}

static bool is_empty(const struct copy *copy)
{
    return copy->start == copy->end;
}

/* Nothing more comes: what is there still goes. After an error the other end is not told: it must
 * not take what has come so far for everything. */
static void end_reading(struct copy *copy, int error)
{
    copy->read_error = error;
    copy->is_cut = error != 0;
    shut(&copy->from);
    if (is_empty(copy) && !copy->is_cut)
        finish(copy);
}

/* Nothing more goes. What is not read ends for its writer, too. */
static void end_writing(struct copy *copy, int error)
{
    copy->write_error = error == EPIPE ? 0 : error;
    copy_stop(copy);
}

static void move(struct copy *copy)
{
    ssize_t count = splice(copy->from, NULL, copy->to, NULL, SPLICE_SIZE,
                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

    if (count == 0)
        end_reading(copy, 0);
    else if (count < 0 && errno == EPIPE)
        end_writing(copy, EPIPE);
    else if (count < 0 && errno != EAGAIN && errno != EINTR)
        copy->is_spliced = false; /* one of the two cannot: reading and writing finds out why */
}

static void fill(struct copy *copy)
{
    ssize_t count = read(copy->from, copy->buffer, sizeof copy->buffer);

    if (count < 0 && errno != EAGAIN && errno != EINTR) {
        /* A terminal whose other end has hung up says so with EIO. */
        end_reading(copy, errno == EIO && isatty(copy->from) ? 0 : errno);
    } else if (count == 0) {
        end_reading(copy, 0);
    } else if (count > 0) {
        if (copy->is_filtered)
            filter(copy->buffer, (size_t)count);
        copy->start = 0;
        copy->end = (size_t)count;
    }
}

static void empty(struct copy *copy)
{
    const uint8_t *at = copy->buffer + copy->start;
    size_t left = copy->end - copy->start;
    ssize_t count;

    /* So much does not block after poll(2), whatever else it is. */
    if (!copy->is_patient && !copy->is_socket && !copy->is_pipe && left > PIPE_BUF)
        left = PIPE_BUF;
    count = copy->is_socket ? send(copy->to, at, left, MSG_DONTWAIT | MSG_NOSIGNAL)
                            : write(copy->to, at, left);
    if (count < 0 && errno != EAGAIN && errno != EINTR) {
        end_writing(copy, errno);
    } else if (count > 0) {
        copy->start += (size_t)count;
        if (is_empty(copy) && copy->from == -1 && !copy->is_cut)
            finish(copy);
    }
}

void copy_wait(const struct copy *copy, struct pollfd wait[2])
{
    bool moves = copy->is_spliced && is_empty(copy);
    /* A file is always ready, so a move waits for the other side alone. */
    bool reads = is_empty(copy) && !(moves && !copy->is_patient);
    bool writes = !is_empty(copy) || (moves && !copy->is_patient);

    wait[0] = (struct pollfd){.fd = reads ? copy->from : -1, .events = POLLIN};
    /* Also while there is nothing to write: that nobody reads any more is told by itself. */
    wait[1] = (struct pollfd){.fd = copy->to, .events = writes ? POLLOUT : 0};
}

void copy_go_on(struct copy *copy, const struct pollfd wait[2])
{
    if (copy_is_over(copy))
        return;
    if (wait[1].revents & (POLLERR | POLLNVAL | POLLHUP)) { /* the last of a socket, a terminal */
        end_writing(copy, EPIPE);
        return;
    }
    if (is_empty(copy) && copy->is_spliced) {
        if (wait[copy->is_patient ? 0 : 1].revents)
            move(copy);
        return;
    }
    if (is_empty(copy)) {
        if (!wait[0].revents)
            return;
        fill(copy);
    }
    if (!is_empty(copy) && wait[1].revents & POLLOUT)
        empty(copy);
    else if (!is_empty(copy) && copy->is_patient)
        empty(copy);
}
