/*
 * Halt polling: one that is about to sleep until its peer wakes it first looks for a while whether
 * what it waits for is there. To wake a sleeper on another processor costs 40 to 90 us, several
 * times what a whole round trip does. The words are those of hypervisors, which do the same for a
 * virtual processor that halts: a poll has a budget of time; the budget grows where answers take
 * longer, and polling shrinks where it does not pay.
 */
#ifndef PEDOS_HALT_POLL_H
#define PEDOS_HALT_POLL_H

#include <stdint.h>

/* The modes of a poll: */
#define PV_POLL_OFF 0   /* none, so it goes to sleep */
#define PV_POLL_YIELD 1 /* lets others run once: on one processor, the peer is among them */
#define PV_POLL_SPIN 2  /* looks again until the budget is spent: with more, the peer may run meanwhile */

/* The budget within one system: what a wake-up costs. More could cost more than it saves. */
#define PV_POLL_NS 50000

/*
 * The budget between domains. There the answer comes once its kernel has been interrupted and its
 * Python has begun: half a millisecond under emulation. Then both are awake, and it takes a tenth of
 * that. A poll that ends before the first answer never gets there (docs/decisions/0005-hot-path.md
 * has the figures). What does not pay is soon hardly tried, so its length matters little to the
 * caller. But the turn of a process with several channels holds up the others, and what dom0 serves
 * waits for it however few there are (pv_channel_share_loop()): a peer that answers just in time
 * makes each poll pay. So there it is PV_POLL_NS at most.
 */
#define PV_POLL_DOMAIN_NS 2000000

/*
 * Growing. On a machine that is slow for a while an answer takes longer than that, if only for the
 * waking up at both ends. So the budget of a turn is so many times what the last answer took, for
 * the next one may well take longer. One that took more than PV_POLL_MAX_NS has another cause, and
 * counts for nothing.
 */
#define PV_POLL_GROW 8
#define PV_POLL_MAX_NS 16000000

/* A yield took too long: others than the peer had the processor. An answer takes some 30 us. */
#define PV_POLL_YIELD_NS 1000000

struct pv_halt_poll {
    uint32_t budget_ns; /* for PV_POLL_SPIN; it grows only where this is above PV_POLL_NS */
    uint32_t skip;      /* waits that are not polled, after polls that did not pay */
    int64_t asked_ns;   /* when something was said that nothing has answered yet; 0: nothing */
    int64_t answer_ns;  /* what the last answer took */
    uint8_t mode;       /* PV_POLL_OFF, PV_POLL_YIELD or PV_POLL_SPIN, as its maker thinks best */
    uint8_t failures;   /* polls that did not pay, in a row */
};

/* Whether what is waited for is there. */
typedef int (*pv_look)(void *arg);

/*
 * Polls, to spin for budget_ns at most: 1 as soon as there is what look waits for, else 0. Each
 * failure doubles the calls that do not even try, up to a thousand.
 */
int pv_halt_poll(struct pv_halt_poll *poll, uint32_t budget_ns, pv_look look, void *arg);

/* What a turn may spend: it holds up an event loop, and is_alone says that nobody else waits for it. */
uint32_t pv_halt_poll_budget(const struct pv_halt_poll *poll, int is_alone);

/* Something is said now that the peer will answer; and its answer has come. */
void pv_halt_poll_asked(struct pv_halt_poll *poll);
void pv_halt_poll_answered(struct pv_halt_poll *poll);

/* What did not pay for somebody else may pay for another: polls again at once. */
void pv_halt_poll_forgive(struct pv_halt_poll *poll);

#endif
