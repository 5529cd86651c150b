/*
 * A channel: a ring, together with what its owner waits on. Everything above (Python, the pump)
 * works on channels and does not see how one was attached. A channel belongs to one thread at a
 * time.
 */
#ifndef PEDOS_CHANNEL_H
#define PEDOS_CHANNEL_H

#include "halt_poll.h"
#include "ring.h"

/*
 * Wake-ups without news that a peer may cause within a second of the clock. A correct peer wakes us
 * only when we asked and something changed, or when it closes. Races remain, at most one for each
 * time that something did change, and those are forgiven. At 50 us for a task of an event loop,
 * this many take a twentieth of one processor.
 */
#define PV_IDLE_WAKES 1000u

struct pv_channel {
    struct pv_ring ring;
    int event_fd; /* readable when the peer has notified us */
    int live_fd;  /* hangs up when the peer dies; -1: that cannot be noticed */
    int wait_fd;  /* epoll over the two, for an event loop that waits on one fd */
    int notify_fd; /* notifies the peer; -1: event_fd does */
    uint32_t idle_wakes;        /* wake-ups without news in idle_second; see PV_IDLE_WAKES */
    int64_t idle_second;        /* of CLOCK_MONOTONIC */
    uint32_t seen_in, seen_out; /* the peer's indices at the last wake-up */
    struct pv_halt_poll poll;   /* of a turn that wrote and has no answer, or a waiting pump */
    uint8_t apart;              /* the peer runs on other processors than our whole system */
    uint8_t armed;              /* the last turn ended so; see pv_channel_is_armed() */
    uint8_t muted;              /* see pv_channel_mute() */
    int (*clear)(struct pv_channel *);   /* takes back the readability of event_fd; 0: it had none */
    void (*detach)(struct pv_channel *); /* gives memory and event_fd back, frees the channel */
};

/* Takes over live_fd (or -1) and makes wait_fd. Returns 0 or -errno (live_fd is then untouched). */
int pv_channel_watch(struct pv_channel *channel, int live_fd);

/* A server's: whether its client has attached to the ring. */
int pv_channel_client_came(const struct pv_channel *channel);

/* 0, or the PV_ code with which everything fails for good (PV_BROKEN, PV_FLOODED). */
int pv_channel_failure(const struct pv_channel *channel);

/* The fd to wait on until pv_channel_collect() is worth calling. */
int pv_channel_wait_fd(const struct pv_channel *channel);

/*
 * After wait_fd became readable: clears it and notes a peer's death. Look at the ring afterwards:
 * it has failed (PV_FLOODED) if this was one wake-up without news too many.
 */
void pv_channel_collect(struct pv_channel *channel);

/* The same in two parts, for a caller that waited on event_fd or live_fd itself: the readable one.
 * */
void pv_channel_woken(struct pv_channel *channel);
void pv_channel_died(struct pv_channel *channel);

/*
 * Stream operations. They return a count of bytes (> 0), or a PV_ code. At PV_WOULD_BLOCK the
 * channel is armed and was looked at again, so that waiting on wait_fd cannot miss news.
 */
int64_t pv_channel_send(struct pv_channel *channel, const uint8_t *bytes, size_t count);
int64_t pv_channel_room(struct pv_channel *channel);
/* *span stays valid until pv_channel_consume(); it is shared memory: copy, then parse. */
int64_t pv_channel_peek(struct pv_channel *channel, size_t max, uint8_t **span);
void pv_channel_consume(struct pv_channel *channel, uint32_t count);

/*
 * Writes as much of out as fits (*sent: how much, or a PV_ code), then copies out at most max of
 * the bytes that are there or arrive meanwhile. Returns how many, or a PV_ code. A task that
 * already waits is not woken for bytes that arrive during the turn: they are this caller's.
 */
int64_t pv_channel_turn(struct pv_channel *channel, const uint8_t *out, size_t count,
                        int64_t *sent, char *in, size_t max);

/*
 * Whether waiting after the last turn cannot miss news: the channel was armed and looked at again.
 * If not, there are more bytes, or the end follows them, and perhaps no event comes any more:
 * another turn has to follow.
 */
int pv_channel_is_armed(const struct pv_channel *channel);

/* Whether something has arrived that no turn has taken: bytes, or the end. */
int pv_channel_has_news(struct pv_channel *channel);

/* Whether tasks other than channels' owners wait for this process's event loop; at first none does.
 * */
void pv_channel_share_loop(int is_shared);

/*
 * Removes the readability of news from wait_fd (a death still shows there), or restores it.
 * Meanwhile another task waits on event_fd, and calls pv_channel_woken() when it became readable.
 */
int pv_channel_mute(struct pv_channel *channel, int muted);
int pv_channel_event_fd(const struct pv_channel *channel);

/* Says goodbye to the peer but keeps the memory. Idempotent. */
void pv_channel_close(struct pv_channel *channel);

/* Closes the channel and frees everything. */
void pv_channel_free(struct pv_channel *channel);

#endif
