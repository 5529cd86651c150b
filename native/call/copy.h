/*
 * Copies between a descriptor of this program and a pipe to the agent, where the agent cannot be
 * given the descriptor itself: a terminal, a file, or one whose bytes are changed on the way. Never
 * sets O_NONBLOCK on what other programs share.
 */
#ifndef PEDOS_CALL_COPY_H
#define PEDOS_CALL_COPY_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* More than a pipe holds, and as long as one word of a command line can be (MAX_ARG_STRLEN). */
#define COPY_SIZE (128 * 1024)

struct copy {
    int from, to;       /* -1 once closed */
    bool is_filtered;   /* see filter() */
    bool is_spliced;    /* the kernel moves the bytes */
    bool is_patient;    /* `to` is a file: it takes everything, if not at once */
    bool is_socket;     /* `to` is one */
    bool is_pipe;       /* `to` is a pipe of ours, which does not block */
    bool is_cut;        /* reading has failed: `to` stays open until copy_stop() */
    int read_error;     /* errno, or 0 */
    int write_error;    /* errno, or 0; never EPIPE: that nobody reads is no failure */
    size_t start, end;  /* what is in the buffer */
    uint8_t buffer[COPY_SIZE];
};

/* Takes both descriptors over. prefix comes first, before what is read. NULL if there is no memory,
 * or no room for the prefix. */
struct copy *copy_new(int from, int to, const char *prefix, bool is_filtered);

/* Whether nothing is left to copy. */
bool copy_is_over(const struct copy *copy);

/* Writes what it waits for into two entries; those it does not use have -1. */
void copy_wait(const struct copy *copy, struct pollfd wait[2]);

/* Goes on, as the two entries say. */
void copy_go_on(struct copy *copy, const struct pollfd wait[2]);

/* Stops it, and closes both descriptors. */
void copy_stop(struct copy *copy);

#endif
