#include "halt_poll.h"

#include <sched.h>
#include <time.h>

#define LOOKS 64      /* between two looks at the clock, some 1 us */
#define SHRINK_MAX 10 /* after that many failures, only every thousandth wait is polled */

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/*
 * Whether something arrived while other programs had this processor. If they kept it long, do not
 * try again for a good while: one such yield costs as much as a hundred successful ones save.
 */
static int came_by_yielding(struct pv_halt_poll *poll, pv_look look, void *arg)
{
    int64_t end = now_ns() + PV_POLL_YIELD_NS;

    sched_yield();
    if (now_ns() >= end) {
        poll->failures = SHRINK_MAX;
        return 0;
    }
    return look(arg);
}

static int came_by_spinning(uint32_t budget_ns, pv_look look, void *arg)
{
    int64_t end = now_ns() + budget_ns;

    do {
        for (int i = 0; i < LOOKS; i++) {
            if (look(arg))
                return 1;
            relax();
        }
    } while (now_ns() < end);
    return 0;
}

static void shrink(struct pv_halt_poll *poll)
{
    poll->failures += poll->failures < SHRINK_MAX;
    poll->skip = 1u << poll->failures;
}

int pv_halt_poll(struct pv_halt_poll *poll, uint32_t budget_ns, pv_look look, void *arg)
{
    if (look(arg))
        return 1;
    if (poll->mode == PV_POLL_OFF)
        return 0;
    if (poll->skip > 0) {
        poll->skip--;
        return 0;
    }
    if (poll->mode == PV_POLL_YIELD ? came_by_yielding(poll, look, arg)
                                    : came_by_spinning(budget_ns, look, arg)) {
        poll->failures = 0;
        return 1;
    }
    shrink(poll);
    return 0;
}

/* The budget, grown by the latest answers. */
static uint32_t grown(const struct pv_halt_poll *poll)
{
    int64_t learnt = PV_POLL_GROW * poll->answer_ns;

    if (learnt <= poll->budget_ns || poll->answer_ns > PV_POLL_MAX_NS)
        return poll->budget_ns;
    return learnt < PV_POLL_MAX_NS ? (uint32_t)learnt : PV_POLL_MAX_NS;
}

uint32_t pv_halt_poll_budget(const struct pv_halt_poll *poll, int is_alone)
{
    if (!is_alone || poll->budget_ns < PV_POLL_NS)
        return poll->budget_ns < PV_POLL_NS ? poll->budget_ns : PV_POLL_NS;
    return grown(poll);
}

void pv_halt_poll_asked(struct pv_halt_poll *poll)
{
    if (poll->budget_ns > PV_POLL_NS)
        poll->asked_ns = now_ns();
}

void pv_halt_poll_answered(struct pv_halt_poll *poll)
{
    if (poll->asked_ns > 0)
        poll->answer_ns = now_ns() - poll->asked_ns;
    poll->asked_ns = 0;
}

void pv_halt_poll_forgive(struct pv_halt_poll *poll)
{
    poll->skip = poll->failures = 0;
}
