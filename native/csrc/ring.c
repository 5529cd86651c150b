/* ring.h describes this engine and what it does not trust. */
#include "ring.h"

#define SMALL_RING_OFFSET 1024u
#define LARGE_RING_OFFSET 2048u

static size_t pages_of(unsigned order)
{
    return order < PV_ORDER_PAGES ? 0 : (size_t)1 << (order - PV_ORDER_PAGES);
}

int pv_orders_valid(unsigned left_order, unsigned right_order)
{
    if (left_order < PV_ORDER_MIN || left_order > PV_ORDER_MAX || right_order < PV_ORDER_MIN ||
        right_order > PV_ORDER_MAX)
        return 0;
    /* Each size has one place inside the page. */
    if (left_order == right_order && left_order < PV_ORDER_PAGES)
        return 0;
    /* The list of grants must end before a ring that stands at offset 1024. */
    if (left_order == PV_ORDER_MIN || right_order == PV_ORDER_MIN) {
        size_t grants = pages_of(left_order) + pages_of(right_order);
        if (sizeof(struct vchan_interface) + grants * sizeof(uint32_t) > SMALL_RING_OFFSET)
            return 0;
    }
    return 1;
}

size_t pv_layout_size(unsigned left_order, unsigned right_order)
{
    return PV_PAGE_SIZE * (1 + pages_of(left_order) + pages_of(right_order));
}

void pv_page_init(struct vchan_interface *page, unsigned left_order, unsigned right_order)
{
    page->left_order = (uint16_t)left_order;
    page->right_order = (uint16_t)right_order;
    page->cli_live = PV_LIVE_ABSENT;
    page->srv_live = PV_LIVE_OPEN;
    page->cli_notify = PV_NOTIFY_WRITE; /* the server waits for the first bytes from the start */
}

static uint8_t *place(struct vchan_interface *page, unsigned order, void *own_pages)
{
    if (order == PV_ORDER_MIN)
        return (uint8_t *)page + SMALL_RING_OFFSET;
    if (order == PV_ORDER_INPAGE)
        return (uint8_t *)page + LARGE_RING_OFFSET;
    return own_pages;
}

void pv_ring_attach(struct pv_ring *ring, struct vchan_interface *page, unsigned left_order,
                    unsigned right_order, void *left, void *right, int is_server,
                    void (*notify)(void *), void *notify_arg)
{
    struct pv_direction from_client = {
        .data = place(page, left_order, left), .size = (uint32_t)1 << left_order};
    struct pv_direction from_server = {
        .data = place(page, right_order, right), .size = (uint32_t)1 << right_order};

    *ring = (struct pv_ring){.notify = notify, .notify_arg = notify_arg};
    if (is_server) {
        ring->in = from_client;
        ring->in.publish = &page->left.cons;
        ring->in.watched = &page->left.prod;
        ring->out = from_server;
        ring->out.publish = &page->right.prod;
        ring->out.watched = &page->right.cons;
        ring->own_live = &page->srv_live;
        ring->peer_live = &page->cli_live;
        ring->asking = &page->cli_notify;
        ring->asked = &page->srv_notify;
    } else {
        ring->in = from_server;
        ring->in.publish = &page->right.cons;
        ring->in.watched = &page->right.prod;
        ring->out = from_client;
        ring->out.publish = &page->left.prod;
        ring->out.watched = &page->left.cons;
        ring->own_live = &page->cli_live;
        ring->peer_live = &page->srv_live;
        ring->asking = &page->srv_notify;
        ring->asked = &page->cli_notify;
        pv_ring_arm(ring, PV_NOTIFY_WRITE);
        __atomic_store_n(&page->cli_live, PV_LIVE_OPEN, __ATOMIC_RELEASE);
        notify(notify_arg); /* the library wakes its server here as well */
    }
}

int64_t pv_ring_fail(struct pv_ring *ring, int8_t code)
{
    if (!ring->broken)
        ring->broken = code;
    pv_ring_close(ring); /* our live flag tells the peer */
    return ring->broken;
}

int64_t pv_ring_ready(struct pv_ring *ring)
{
    struct pv_direction *in = &ring->in;

    if (ring->broken)
        return ring->broken;
    if (!ring->final) {
        /*
         * The live flag is read before the index. A peer writes bytes, then its index, then the
         * flag; acquire on the flag makes the index that we read next the last one. In the other
         * order, bytes written between the two looks would be lost at close.
         */
        uint8_t live = __atomic_load_n(ring->peer_live, __ATOMIC_ACQUIRE);
        /* Acquire: the bytes below prod must not be read before prod is. */
        uint32_t prod = __atomic_load_n(in->watched, __ATOMIC_ACQUIRE);

        /* More than fits, or announced bytes withdrawn. */
        if (prod - in->own > in->size || prod - in->own < in->peer - in->own)
            return pv_ring_fail(ring, PV_BROKEN);
        in->peer = prod;
        if (live == PV_LIVE_CLOSED || ring->gone) {
            ring->final = 1;
            ring->clean = live == PV_LIVE_CLOSED;
        }
    }
    if (in->peer != in->own)
        return in->peer - in->own;
    if (!ring->final)
        return PV_WOULD_BLOCK;
    return ring->clean ? PV_CLOSED : PV_DIED;
}

int64_t pv_ring_room(struct pv_ring *ring)
{
    struct pv_direction *out = &ring->out;
    uint32_t cons;

    if (ring->broken)
        return ring->broken;
    if (ring->closed || __atomic_load_n(ring->peer_live, __ATOMIC_ACQUIRE) == PV_LIVE_CLOSED)
        return PV_CLOSED;
    if (ring->gone)
        return PV_DIED;
    /* Acquire: bytes written into the freed space must not overtake the peer's reading of it. */
    cons = __atomic_load_n(out->watched, __ATOMIC_ACQUIRE);
    /* The peer read what was never written, or withdrew what it had read. */
    if (out->own - cons > out->own - out->peer)
        return pv_ring_fail(ring, PV_BROKEN);
    out->peer = cons;
    if (out->own - cons == out->size)
        return PV_WOULD_BLOCK;
    return out->size - (out->own - cons);
}

static int64_t span_of(const struct pv_direction *half, int64_t count, uint8_t **span)
{
    uint32_t offset = half->own & (half->size - 1);

    *span = half->data + offset;
    return count < half->size - offset ? count : half->size - offset;
}

int64_t pv_ring_readable(struct pv_ring *ring, uint8_t **span)
{
    int64_t count = pv_ring_ready(ring);

    return count < 0 ? count : span_of(&ring->in, count, span);
}

int64_t pv_ring_writable(struct pv_ring *ring, uint8_t **span)
{
    int64_t count = pv_ring_room(ring);

    return count < 0 ? count : span_of(&ring->out, count, span);
}

/* Wakes the peer if it asked for that. */
static void answer(struct pv_ring *ring, uint8_t bit)
{
    /*
     * Store of our index, full barrier, load of its request; the peer does it crosswise (request,
     * full barrier, look at our index). At least one of the two sees the other, so neither sleeps
     * on news. Release and acquire alone do not guarantee this.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    /* A plain look first: the locked operation is needed only if there is something to clear. */
    if (!(__atomic_load_n(ring->asked, __ATOMIC_RELAXED) & bit))
        return;
    if (__atomic_fetch_and(ring->asked, (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit)
        ring->notify(ring->notify_arg);
}

void pv_ring_consume(struct pv_ring *ring, uint32_t n)
{
    struct pv_direction *in = &ring->in;

    in->own += n;
    /* Release: we are done with the bytes before the peer may overwrite them. */
    __atomic_store_n(in->publish, in->own, __ATOMIC_RELEASE);
    /*
     * Hysteresis: a writer that waits for room is woken when half the ring is free, not for every
     * few bytes. This only delays the wake-up: pv_ring_arm makes up for it before we sleep
     * ourselves; otherwise two ends that both wait for a little room would wait for ever.
     */
    if (in->peer - in->own <= in->size / 2) {
        ring->withheld = 0;
        answer(ring, PV_NOTIFY_READ);
    } else {
        ring->withheld = 1;
    }
}

void pv_ring_produce(struct pv_ring *ring, uint32_t n)
{
    struct pv_direction *out = &ring->out;

    out->own += n;
    /* Release: the bytes are in the ring before the index says so. */
    __atomic_store_n(out->publish, out->own, __ATOMIC_RELEASE);
    answer(ring, PV_NOTIFY_WRITE);
}

void pv_ring_arm(struct pv_ring *ring, unsigned bits)
{
    if (ring->withheld) {
        ring->withheld = 0;
        answer(ring, PV_NOTIFY_READ);
    }
    /* Atomic: the peer clears bits of this byte at the same time. */
    __atomic_fetch_or(ring->asking, (uint8_t)bits, __ATOMIC_SEQ_CST);
    /* The caller's second look must not be done before the request is visible; see answer(). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void pv_ring_peer_gone(struct pv_ring *ring)
{
    ring->gone = 1;
}

void pv_ring_close(struct pv_ring *ring)
{
    if (ring->closed)
        return;
    ring->closed = 1;
    /* Release: a reader that sees the flag sees the last index, and through it the last byte. */
    __atomic_store_n(ring->own_live, PV_LIVE_CLOSED, __ATOMIC_RELEASE);
    ring->notify(ring->notify_arg); /* whether it asked or not: this is its only wake-up */
}
