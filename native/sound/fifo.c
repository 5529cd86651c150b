#include "fifo.h"

#define MASK (FIFO_SAMPLES - 1u)

_Static_assert((FIFO_SAMPLES & MASK) == 0, "a place in the buffer is the low bits");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2, "no locks");

void fifo_init(struct fifo *fifo)
{
    atomic_init(&fifo->written, 0);
    atomic_init(&fifo->read, 0);
    atomic_init(&fifo->floor, 0);
    atomic_init(&fifo->last_ns, 0);
}

size_t fifo_write(struct fifo *fifo, const int16_t *samples, size_t n, int64_t now_ns)
{
    uint64_t written = atomic_load_explicit(&fifo->written, memory_order_relaxed);
    uint64_t read = atomic_load_explicit(&fifo->read, memory_order_acquire);
    size_t room = FIFO_SAMPLES - (size_t)(written - read);

    if (n > room)
        n = room;
    for (size_t i = 0; i < n; i++)
        fifo->samples[(written + i) & MASK] = samples != NULL ? samples[i] : 0;
    atomic_store_explicit(&fifo->last_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&fifo->written, written + n, memory_order_release);
    return n;
}

void fifo_flush(struct fifo *fifo)
{
    atomic_store_explicit(&fifo->floor, atomic_load_explicit(&fifo->written, memory_order_relaxed),
                          memory_order_release);
}

uint32_t fifo_ready(struct fifo *fifo)
{
    /* The floor first: what is written was at least there when the floor was set. */
    uint64_t floor = atomic_load_explicit(&fifo->floor, memory_order_acquire);
    uint64_t written = atomic_load_explicit(&fifo->written, memory_order_acquire);
    uint64_t read = atomic_load_explicit(&fifo->read, memory_order_relaxed);

    if (floor > read) {
        read = floor;
        atomic_store_explicit(&fifo->read, read, memory_order_release);
    }
    return (uint32_t)(written - read);
}

void fifo_drop(struct fifo *fifo, uint32_t n)
{
    uint64_t read = atomic_load_explicit(&fifo->read, memory_order_relaxed);

    atomic_store_explicit(&fifo->read, read + n, memory_order_release);
}

void fifo_take(struct fifo *fifo, float *to, uint32_t n)
{
    uint64_t read = atomic_load_explicit(&fifo->read, memory_order_relaxed);

    for (uint32_t i = 0; i < n; i++)
        to[i] = (float)fifo->samples[(read + i) & MASK] / 32768.0f;
    atomic_store_explicit(&fifo->read, read + n, memory_order_release);
}
