/*
 * libFuzzer's target for the shared page: the input is a script of what the peer does to the page
 * between calls of the ring and of the stream operations over it.
 *
 * First byte: which role we play (bit 0) and the orders. Then commands of one byte, some with
 * operands: ours call one function and check what it promises; the peer's write to the page. Once
 * the script says so (`racing`), the peer also acts in the middle of our calls: before each of
 * their loads from the page, which ring.c, compiled in here, does through a macro, and in each
 * notification. So a value that is read twice is two values.
 */
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"

static void peer_races(void);

#define __atomic_load_n(at, order) (peer_races(), *(const volatile __typeof__(*(at)) *)(at))
#include "ring.c"
#undef __atomic_load_n

#define CHECK(what)      \
    do {                 \
        if (!(what))     \
            abort();     \
    } while (0)

static const struct {
    uint8_t left, right;
} ORDERS[] = {{10, 11}, {11, 10}, {12, 10}, {10, 12}, {12, 12}, {13, 11}, {11, 13}, {13, 12}};

static struct script {
    const uint8_t *at, *end;
} script;

static struct vchan_interface *page;
static struct pv_channel channel;
static unsigned racing;
static uint32_t in_size, out_size, last_in, last_out, in_peer, out_peer;
static int64_t broken;

static uint32_t take(unsigned bytes)
{
    uint32_t value = 0;

    for (; bytes && script.at < script.end; bytes--)
        value = value << 8 | *script.at++;
    return value;
}

/* One thing that a peer can do to the page. */
static void peer_acts(void)
{
    uint32_t *const indices[] = {&page->left.cons, &page->left.prod, &page->right.cons,
                                 &page->right.prod};
    uint8_t what = (uint8_t)take(1);

    switch (what % 8) {
    case 0: /* a small step of an index */
    case 1:
        *indices[what / 8 % 4] += take(1);
        break;
    case 2: /* any value */
        *indices[what / 8 % 4] = take(4);
        break;
    case 3: /* a step by one size, and a bit */
        *indices[what / 8 % 4] += in_size + (what / 32 % 4) - 1;
        break;
    case 4:
        *(what & 8 ? &page->cli_live : &page->srv_live) = (uint8_t)take(1);
        break;
    case 5:
        *(what & 8 ? &page->cli_notify : &page->srv_notify) = (uint8_t)take(1);
        break;
    case 6: /* any byte, orders and grants too */
        ((uint8_t *)page)[take(2) % PV_PAGE_SIZE] = (uint8_t)take(1);
        break;
    case 7: /* what an honest peer does: it reads all, or writes some */
        if (what & 8)
            page->left.cons = page->left.prod, page->right.cons = page->right.prod;
        else
            *channel.ring.asking = 0;
        break;
    }
}

static void peer_races(void)
{
    if (racing && take(1) % 2)
        peer_acts();
}

static void notify(void *arg)
{
    (void)arg;
    peer_races();
}

/* A patient turn yields the processor; here only the peer can take it. */
int sched_yield(void)
{
    peer_races();
    return 0;
}

static int nothing(struct pv_channel *it)
{
    (void)it;
    return 1;
}

/* What holds after every call, whatever the peer did. */
static void check_ring(void)
{
    const struct pv_ring *ring = &channel.ring;

    CHECK(ring->in.size == in_size && ring->out.size == out_size);
    CHECK(ring->in.peer - ring->in.own <= in_size);
    CHECK(ring->out.own - ring->out.peer <= out_size);
    /* What was announced stays announced, and what was read stays read. */
    CHECK(broken || ring->in.peer - ring->in.own >= in_peer - ring->in.own ||
          in_peer - ring->in.own > in_size /* we have read it since */);
    CHECK(broken || ring->out.own - ring->out.peer <= ring->out.own - out_peer);
    in_peer = ring->in.peer;
    out_peer = ring->out.peer;
    CHECK(ring->in.own == last_in && ring->out.own == last_out); /* only our own calls move them */
    if (broken)
        CHECK(ring->broken == broken && ring->closed);
}

static int64_t checked(int64_t result, int64_t most)
{
    CHECK(result >= PV_FLOODED && result != 0 && result <= most);
    if (broken)
        CHECK(result == broken);
    if (result == PV_BROKEN || result == PV_FLOODED)
        broken = result;
    return result;
}

/* A span that the ring returned: every byte of it can be touched, and is inside the ring. */
static void touch(const struct pv_direction *half, uint8_t *span, int64_t count, int writes)
{
    volatile uint8_t sum = 0;

    (void)sum;
    if (count <= 0)
        return;
    CHECK(span >= half->data && span + count <= half->data + half->size);
    for (int64_t i = 0; i < count; i++) {
        if (writes)
            span[i] = (uint8_t)i;
        else
            sum = sum ^ span[i];
    }
}

static void turn(uint8_t what)
{
    static uint8_t bytes[1 << 12];
    static char in[1 << 12];
    struct pv_ring *ring = &channel.ring;
    size_t size = take(2) % sizeof bytes, most = 1 + take(2) % sizeof in;
    int64_t sent, got;

    channel.poll.mode = what & 16 ? PV_POLL_YIELD : PV_POLL_OFF;
    got = pv_channel_turn(&channel, bytes, size, &sent, in, most);
    CHECK(size ? sent && sent <= (int64_t)size : !sent);
    last_out += sent > 0 ? (uint32_t)sent : 0;
    last_in += got > 0 ? (uint32_t)got : 0;
    checked(got, (int64_t)most);
    CHECK(!broken || got == broken);
    broken = ring->broken; /* behind the bytes that were taken */
    CHECK(got != PV_WOULD_BLOCK || pv_channel_is_armed(&channel));
    if (pv_channel_is_armed(&channel))
        CHECK(!broken && got < (int64_t)most && (racing || *ring->asking & PV_NOTIFY_WRITE));
}

static void we_act(uint8_t what)
{
    static uint8_t bytes[1 << 14];
    struct pv_ring *ring = &channel.ring;
    uint8_t *span = NULL;
    int64_t count, size;

    switch (what % 8) {
    case 0:
        count = checked(pv_ring_readable(ring, &span), in_size);
        touch(&ring->in, span, count, 0);
        if (count > 0 && what & 8) {
            size = 1 + take(2) % count;
            last_in += (uint32_t)size;
            pv_ring_consume(ring, (uint32_t)size);
        }
        break;
    case 1:
        count = checked(pv_ring_writable(ring, &span), out_size);
        touch(&ring->out, span, count, 1);
        if (count > 0 && what & 8) {
            size = 1 + take(2) % count;
            last_out += (uint32_t)size;
            pv_ring_produce(ring, (uint32_t)size);
        }
        break;
    case 2:
        size = 1 + take(2);
        count = checked(pv_channel_peek(&channel, (size_t)size, &span), size);
        touch(&ring->in, span, count, 0);
        if (count > 0) {
            last_in += (uint32_t)count;
            pv_channel_consume(&channel, (uint32_t)count);
        }
        break;
    case 3:
        if (what & 8) {
            turn(what);
            break;
        }
        size = 1 + take(2) % sizeof bytes;
        count = checked(pv_channel_send(&channel, bytes, (size_t)size), size);
        last_out += count > 0 ? (uint32_t)count : 0;
        break;
    case 4:
        checked(pv_ring_ready(ring), in_size);
        checked(pv_ring_room(ring), ring->closed && !broken ? 0 : out_size);
        break;
    case 5:
        pv_ring_arm(ring, what / 8 % 4);
        CHECK(racing || (*ring->asking & (what / 8 % 4)) == what / 8 % 4);
        break;
    case 6:
        if (what & 8)
            pv_ring_peer_gone(ring);
        checked(pv_channel_room(&channel), out_size);
        break;
    case 7:
        if (what >> 3 == 7) {
            pv_channel_close(&channel);
            CHECK(ring->closed);
        }
        racing = what & 8;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t first, left, right, *left_data = NULL, *right_data = NULL;
    int is_server;

    script.at = data;
    script.end = data + size;
    first = (uint8_t)take(1);
    is_server = first & 1;
    left = ORDERS[first / 2 % 8].left;
    right = ORDERS[first / 2 % 8].right;
    CHECK(pv_orders_valid(left, right));
    /* Each its own allocation, so that the sanitizer sees a step over its end. */
    page = calloc(1, PV_PAGE_SIZE);
    left_data = left >= PV_ORDER_PAGES ? malloc((size_t)1 << left) : NULL;
    right_data = right >= PV_ORDER_PAGES ? malloc((size_t)1 << right) : NULL;
    CHECK(page && (left < PV_ORDER_PAGES || left_data) && (right < PV_ORDER_PAGES || right_data));
    if (left_data)
        memset(left_data, 1, (size_t)1 << left);
    if (right_data)
        memset(right_data, 1, (size_t)1 << right);
    in_size = 1u << (is_server ? left : right);
    out_size = 1u << (is_server ? right : left);
    last_in = last_out = in_peer = out_peer = 0;
    broken = 0;
    racing = 0;
    memset(&channel, 0, sizeof channel);
    channel.clear = nothing;
    pv_page_init(page, left, right);
    pv_ring_attach(&channel.ring, page, left, right, left_data, right_data, is_server, notify,
                   NULL);
    page->srv_live = page->cli_live = PV_LIVE_OPEN;
    while (script.at < script.end) {
        uint8_t what = (uint8_t)take(1);

        if (what & 128)
            peer_acts();
        else
            we_act(what);
        check_ring();
    }
    free(page);
    free(left_data);
    free(right_data);
    return 0;
}
