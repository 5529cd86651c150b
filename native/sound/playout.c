#include "playout.h"

#include <string.h>

#define SECOND_NS INT64_C(1000000000)

void playout_init(struct playout *playout)
{
    fifo_init(&playout->fifo);
    rate_init(&playout->rate);
    atomic_init(&playout->is_new, false);
}

void playout_forget(struct playout *playout, bool is_new)
{
    fifo_flush(&playout->fifo);
    if (is_new)
        atomic_store_explicit(&playout->is_new, true, memory_order_release);
}

void playout_feed(struct playout *playout, const int16_t *samples, size_t count, int64_t now_ns)
{
    fifo_write(&playout->fifo, samples, count, now_ns);
}

/* How many samples the source has collected since its last message came; a second's at most. */
static uint32_t age(const struct playout *playout, int64_t now_ns)
{
    int64_t ns = now_ns - atomic_load_explicit(&playout->fifo.last_ns, memory_order_relaxed);

    if (ns < 0)
        return 0;
    if (ns > SECOND_NS)
        return RATE_HZ;
    return (uint32_t)(ns * RATE_HZ / SECOND_NS);
}

double playout_fill(struct playout *playout, float *to, uint32_t wanted, int64_t now_ns)
{
    struct rate_step step;

    if (atomic_exchange_explicit(&playout->is_new, false, memory_order_acquire))
        rate_start(&playout->rate);
    step = rate_cycle(&playout->rate, wanted, fifo_ready(&playout->fifo), age(playout, now_ns));
    fifo_drop(&playout->fifo, step.drop);
    fifo_take(&playout->fifo, to, step.play);
    memset(to + step.play, 0, (wanted - step.play) * sizeof *to);
    return rate_correction(&playout->rate);
}
