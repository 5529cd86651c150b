/*
 * A descriptor of a program's stream, read and written without ever waiting for it.
 *
 * Other programs may share the open file description: O_NONBLOCK set on it would make their own
 * reads and writes fail, and a hostile one could take it away again in the middle of ours. So it
 * stays as it is. Stream sockets have MSG_DONTWAIT. A FIFO is opened anew, which gives a
 * description of our own; where that is forbidden (it is another user's), its bytes go by splice(2)
 * with SPLICE_F_NONBLOCK, through a pipe of our own.
 *
 * To take, shut down or close one may still wait, for ever if a program wants it so: for a lock of
 * the pipe or socket that it holds, for data that lingers, for a file system of its own. So all of
 * that belongs into a thread of the call.
 */
#ifndef PEDOS_CALL_FD_H
#define PEDOS_CALL_FD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* What read and write return beside a count: */
#define PV_FD_LATER (-1) /* nothing there, or no room, at the moment */
#define PV_FD_OVER (-2)  /* end of file, or nobody reads any more */
#define PV_FD_FAILED (-3) /* read: what follows is lost; `error` is why */

struct pv_fd {
    int fd;       /* -1: there is none, or none any more */
    int relay[2]; /* the pipe of our own, for splice; -1: not needed */
    size_t held;  /* bytes in it, of an output */
    int error;    /* after PV_FD_FAILED; of an output: why PV_FD_OVER is no good end, or 0 */
    uint8_t is_socket, is_output;
    uint8_t is_local; /* a Unix socket */
    uint8_t shuts; /* a socket is shut down, too, and not only closed: others have it open */
    /* A socket whose input is ours alone. It is emptied before it is closed, so that who writes to
     * it finds a broken pipe, as in a pipeline, and not a connection that was reset. */
    uint8_t is_ours;
};

/* What a descriptor is: */
enum pv_fd_kind {
    PV_FD_FITS,      /* a FIFO, open in this direction, or a stream socket */
    PV_FD_WRONG_END, /* of a pipe */
    PV_FD_NO_STREAM, /* a socket of another kind, or one that listens */
    PV_FD_OTHER,
};

/* enum pv_fd_kind. This alone waits for nothing, whatever the descriptor is. */
int pv_fd_look(int number, int is_output);
/* Whether all three streams of a call are PV_FD_FITS; nor does this wait. */
int pv_fd_fit(int fd_in, int fd_out, int fd_err);

/*
 * Takes over a descriptor (-1: there is none), which the caller does not close any more even if
 * this fails: 0 or -errno (-EINVAL: neither a FIFO, open in this direction, nor a stream socket).
 */
int pv_fd_take(struct pv_fd *fd, int number, int is_output, int shuts);

ssize_t pv_fd_read(struct pv_fd *fd, struct iovec *parts, int count);

/* What it takes may still be held; see pv_fd_flush(). */
ssize_t pv_fd_write(struct pv_fd *fd, struct iovec *parts, int count);

/* Passes on what is held: 0 if nothing is any more. */
ssize_t pv_fd_flush(struct pv_fd *fd);

/* poll(2) says that an output takes no more: has `error` say why, if that is no good end. */
void pv_fd_hung_up(struct pv_fd *fd);

/* Closes it. What is held is lost. */
void pv_fd_close(struct pv_fd *fd);

#endif
