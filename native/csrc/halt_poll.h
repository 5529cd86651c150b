/*
 * Halt polling: a thread that is about to sleep until its peer wakes it first polls for a while.
 * Waking a sleeper on another processor takes 40 to 90 us, several times a whole round trip. The
 * terms are those of hypervisors, which do the same for a virtual processor that halts: a poll has
 * a budget of time; the budget grows where answers take longer, and polling shrinks where it does
 * not pay.
 */
#ifndef PEDOS_HALT_POLL_H
#define PEDOS_HALT_POLL_H

#include <stdint.h>

/* The modes of a poll: */
#define PV_POLL_OFF 0   /* no polling: sleep */
#define PV_POLL_YIELD 1 /* let others run once: on a single processor, the peer is among them */
#define PV_POLL_SPIN 2  /* poll until the budget is spent: on several, the peer may run meanwhile */

/* The budget within one system: the cost of a wake-up. More could cost more than it saves. */
#define PV_POLL_NS 50000

/*
 * The budget between domains. There the answer arrives once the peer's kernel has been interrupted
 * and its Python has begun: half a millisecond under emulation. Then both are awake, and it takes a
 * tenth of that. A poll that ends before the first answer never gets there
 * (docs/decisions/0005-hot-path.md has the figures). Polls that do not pay soon become rare, so the
 * budget matters little to the caller. But the turn of a process with several channels delays the
 * others, and what dom0 serves waits for it, however few channels there are
 * (pv_channel_share_loop()): a peer that answers just in time makes each poll pay. So there the
 * budget is at most PV_POLL_NS.
 */
#define PV_POLL_DOMAIN_NS 2000000

/*
 * Growth. On a machine that is slow for a while, an answer takes longer than that, if only because
 * both ends have to wake up. So the budget of a turn is so many times the duration of the last
 * answer, because the next one may well take longer. An answer that took more than PV_POLL_MAX_NS
 * has another cause, and does not count.
 */
#define PV_POLL_GROW 8
#define PV_POLL_MAX_NS 16000000

/* A yield took too long: programs other than the peer had the processor. An answer takes some 30
 * us. */
#define PV_POLL_YIELD_NS 1000000

struct pv_halt_poll {
    uint32_t budget_ns; /* for PV_POLL_SPIN; it grows only where this is above PV_POLL_NS */
    uint32_t skip;      /* waits that are not polled, after polls that did not pay */
    int64_t asked_ns;   /* when the request was sent that is still unanswered; 0: none is */
    int64_t answer_ns;  /* the duration of the last answer */
    uint8_t mode;       /* PV_POLL_OFF, PV_POLL_YIELD or PV_POLL_SPIN, as the owner chooses */
    uint8_t failures;   /* polls that did not pay, in a row */
};

/* Whether the awaited event has happened. */
typedef int (*pv_look)(void *arg);

/*
 * Polls, to spin for budget_ns at most: 1 as soon as look succeeds, else 0. Each failure doubles
 * the calls that do not even try, up to a thousand.
 */
int pv_halt_poll(struct pv_halt_poll *poll, uint32_t budget_ns, pv_look look, void *arg);

/* The budget of a turn, which delays an event loop; is_alone says that nothing else waits for it.
 * */
uint32_t pv_halt_poll_budget(const struct pv_halt_poll *poll, int is_alone);

/* A request is sent now that the peer will answer; and its answer has arrived. */
void pv_halt_poll_asked(struct pv_halt_poll *poll);
void pv_halt_poll_answered(struct pv_halt_poll *poll);

/* Polls that did not pay for one caller may pay for another: poll again at once. */
void pv_halt_poll_forgive(struct pv_halt_poll *poll);

#endif
