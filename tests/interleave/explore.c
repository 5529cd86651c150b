/*
 * Every interleaving of the two ends of a channel, over the code itself: ring.c, halt_poll.c,
 * channel.c and pump.c are compiled in here, with their atomics and their system calls mapped onto a
 * model.
 *
 *   explore JOB SIZE COUNT PIECE MOST
 *
 *   one    COUNT bytes one way in pieces of PIECE, read at most MOST at a time, then close
 *   both   COUNT bytes each way at the same time, then close
 *   leave  as one, but the reader closes after half of them
 *   pump   as one, between two pumps
 *   pumps  as pump, and as many bytes back
 *   turn   as one, by turns that poll (pv_channel_turn)
 *   turns  as both, by turns that poll
 *   mixed  as both, but only the server takes turns
 *
 * SIZE is that of each ring, 2 to 16 bytes; indices start just below their overflow. Exits with 0
 * when every interleaving ends well, 1 with the interleaving that does not.
 *
 * The model. Two threads on stacks of their own take turns at each access to shared memory. Stores
 * go to a buffer of the thread, first in first out, and reach memory at any later time; a thread
 * sees its own. A full fence waits until the buffer is empty. A read-modify-write works on the
 * newest value but leaves its result in the buffer, so a later load may overtake it: weaker than
 * x86, as weak as C11 lets it be, so a fence that only other processors need is missed as well. A
 * notification is a store behind all others. Loads are not reordered among themselves: those that
 * matter are acquire loads, and ThreadSanitizer watches over these. No thread wakes without an
 * event. So when no step is left and a thread is not done, it waits for an event that was lost.
 *
 * The search is depth first over states, which are compared by a 64-bit hash of all that counts:
 * shared memory, buffers, private rings, and what each thread has seen since it last stood at a
 * place where its local variables hold nothing, and what its private state was there. Ten million states collide with probability 3e-6.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "channel.h"

static uint32_t model_load(const volatile void *at, unsigned size);
static void model_store(volatile void *at, unsigned size, uint32_t value);
static uint32_t model_or(volatile void *at, uint8_t bits);
static uint32_t model_and(volatile void *at, uint8_t bits);
static void model_fence(void);
static ssize_t model_read(int fd, void *bytes, size_t count);
static ssize_t model_write(int fd, const void *bytes, size_t count);
static int model_poll(struct pollfd *fds);
static void model_collect(struct pv_channel *channel);
static int model_clock(struct timespec *time);

#define __atomic_load_n(at, order) model_load(at, sizeof *(at))
#define __atomic_store_n(at, value, order) model_store(at, sizeof *(at), value)
#define __atomic_fetch_or(at, bits, order) model_or(at, bits)
#define __atomic_fetch_and(at, bits, order) model_and(at, bits)
#define __atomic_thread_fence(order) model_fence()
#define clock_gettime(clock, time) model_clock(time)
#define sched_yield() (void)0 /* at the next access the other thread may run any number of steps */
#include "ring.c"
#include "halt_poll.c"
#include "channel.c"
#undef clock_gettime
#undef sched_yield
#define read model_read
#define write model_write
#define poll(fds, count, timeout) model_poll(fds)
#define pv_channel_woken model_collect
#include "pump.c"

/* Threads here call run() themselves. */
int pv_own_files_run(const int *fds, unsigned count, void (*work)(void *), void *arg)
{
    (void)fds, (void)count, (void)work, (void)arg;
    return -ENOSYS;
}

#undef read
#undef write
#undef poll

#define STACK 8192
#define BUFFER 8
#define RING 16
#define SOURCE 100 /* the pump's descriptors, by name */
#define SINK 101
#define DEPTH_MAX 100000

enum kind { STARTS, LOADS, CHANGES, FENCES, STORES, WAITS, ENDS };

struct store {
    volatile void *at;
    uint32_t value;
    unsigned size;
};

struct thread {
    /* What it waits to do, and what it has seen: its registers and its stack, for comparisons. */
    enum kind next;
    const volatile void *at;
    uint64_t seen;
    struct store buffer[BUFFER];
    unsigned buffered;
    /* Private, at known places. */
    struct pv_channel channel;
    struct loop loop;
    struct pv_pump pump;
    uint32_t to_send, to_receive, sent, received;
    uint8_t closes, ended, tired;
    uint64_t none[]; /* the end, for digest() */
};

static struct world {
    struct vchan_interface page;
    uint8_t left[RING], right[RING], event[2];
    struct thread threads[2];
    /* From here on: not compared, a thread's `seen` stands for it. */
    ucontext_t contexts[2];
    _Alignas(16) uint8_t stacks[2][STACK];
} world;

static ucontext_t searching;
static int self;
static uint32_t piece, most;
static const char *job;

static struct step {
    int thread, drains;
    enum kind kind;
    const volatile void *at;
    uint32_t value;
} path[DEPTH_MAX];
static size_t depth;

static const char *name_of(const volatile void *at)
{
    const struct vchan_interface *page = &world.page;

    return at == &page->left.cons     ? "left.cons"
           : at == &page->left.prod   ? "left.prod"
           : at == &page->right.cons  ? "right.cons"
           : at == &page->right.prod  ? "right.prod"
           : at == &page->cli_live    ? "cli_live"
           : at == &page->srv_live    ? "srv_live"
           : at == &page->cli_notify  ? "cli_notify"
           : at == &page->srv_notify  ? "srv_notify"
           : at == &world.event[0]    ? "server's event"
           : at == &world.event[1]    ? "client's event"
                                      : "";
}

static void report(const char *what)
{
    static const char *const kinds[] = {"starts", "loads", "changes", "fences",
                                        "stores", "wakes", "ends"};

    printf("%s\n", what);
    for (size_t i = 0; i < depth; i++)
        printf("  %s %s %s %x\n", path[i].thread ? "            client" : "server",
               path[i].drains ? "publishes" : kinds[path[i].kind], name_of(path[i].at),
               path[i].value);
    for (int i = 0; i < 2; i++)
        printf("%s: sent %u, received %u, %s\n", i ? "client" : "server", world.threads[i].sent,
               world.threads[i].received, world.threads[i].next == WAITS ? "asleep" : "done");
    exit(1);
}

static uint64_t digest(uint64_t start, const void *bytes, size_t size)
{
    const uint64_t *words = bytes;
    uint64_t sum = start;

    for (size_t i = 0; i < size / sizeof *words; i++) {
        sum = (sum ^ words[i]) * 0x9E3779B97F4A7C15u;
        sum ^= sum >> 32;
    }
    return sum;
}

/* The threads' side */

static struct thread *me(void)
{
    return &world.threads[self];
}

/* Lets the search choose; returns when it is this thread's turn to do what it announced. */
static void announce(enum kind kind, const volatile void *at)
{
    int mine = self;

    me()->next = kind;
    me()->at = at;
    swapcontext(&world.contexts[mine], &searching);
}

static void mix(uint64_t value)
{
    uint64_t *seen = &me()->seen;

    *seen = (*seen ^ (value + 1)) * 0x9E3779B97F4A7C15u;
    *seen ^= *seen >> 29;
    path[depth].value = (uint32_t)value;
}

/*
 * A place where local variables hold nothing that is not also in struct thread. From here on the
 * thread's steps follow from the present state and from the values that it loads.
 */
static void crossroads(uint64_t label)
{
    const struct thread *thread = me();
    const size_t from = offsetof(struct thread, channel), to = offsetof(struct thread, none);

    me()->seen = digest(label, (const uint8_t *)thread + from, to - from);
}

static uint32_t memory(const volatile void *at, unsigned size)
{
    return size == 1   ? *(const volatile uint8_t *)at
           : size == 2 ? *(const volatile uint16_t *)at
                       : *(const volatile uint32_t *)at;
}

static uint32_t newest(const volatile void *at, unsigned size)
{
    for (unsigned i = me()->buffered; i > 0; i--)
        if (me()->buffer[i - 1].at == at)
            return me()->buffer[i - 1].value;
    return memory(at, size);
}

static uint32_t model_load(const volatile void *at, unsigned size)
{
    uint32_t value;

    if ((const uint8_t *)at < (uint8_t *)&world.page ||
        (const uint8_t *)at >= (uint8_t *)(&world.page + 1)) {
        crossroads(1); /* the pump looks whether it was cancelled: the top of its loop */
        return memory(at, size);
    }
    announce(LOADS, at);
    value = newest(at, size);
    mix(value);
    return value;
}

static void model_store(volatile void *at, unsigned size, uint32_t value)
{
    if (me()->buffered == BUFFER)
        announce(STORES, at);
    me()->buffer[me()->buffered++] = (struct store){at, value, size};
}

static uint32_t change(volatile void *at, uint8_t keep, uint8_t add)
{
    uint32_t old;

    announce(CHANGES, at);
    old = newest(at, 1);
    mix(old);
    model_store(at, 1, (old & keep) | add);
    return old;
}

static uint32_t model_or(volatile void *at, uint8_t bits)
{
    return change(at, 0xff, bits);
}

static uint32_t model_and(volatile void *at, uint8_t bits)
{
    return change(at, bits, 0);
}

static void model_fence(void)
{
    announce(FENCES, NULL);
}

static void notify_peer(void *arg)
{
    (void)arg;
    model_store(&world.event[!self], 1, 1);
}

static void model_collect(struct pv_channel *channel)
{
    (void)channel;
    world.event[self] = 0; /* reading an eventfd takes a lock: later loads stay behind it */
}

/*
 * No time passes: a yield is never too long. Patience is the one look of a yield here; a spin is as
 * many of the same, and adds nothing but states.
 */
static int model_clock(struct timespec *time)
{
    *time = (struct timespec){0};
    return 0;
}

static uint8_t letter(int sender, uint32_t position)
{
    return (uint8_t)(position * 31 + (unsigned)sender + 1);
}

static void check(const uint8_t *bytes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (bytes[i] != letter(!self, me()->received + i))
            report("wrong byte");
    me()->received += count;
}

static ssize_t model_read(int fd, void *bytes, size_t count)
{
    uint32_t size = me()->to_send - me()->sent;

    if (fd != SOURCE)
        abort();
    if (!size && me()->closes)
        return 0;
    if (!size) {
        errno = EAGAIN;
        return -1;
    }
    size = size < piece ? size : piece;
    size = size < count ? size : (uint32_t)count;
    for (uint32_t i = 0; i < size; i++)
        ((uint8_t *)bytes)[i] = letter(self, me()->sent + i);
    me()->sent += size;
    return size;
}

/* Takes bytes only at every other call. */
static ssize_t model_write(int fd, const void *bytes, size_t count)
{
    if (fd != SINK)
        abort();
    me()->tired = !me()->tired;
    if (!me()->tired) {
        errno = EAGAIN;
        return -1;
    }
    count = count < most ? count : most;
    check(bytes, (uint32_t)count);
    return (ssize_t)count;
}

/* The descriptors in the order of pump.c: event, death, cancel, in, out. */
static int model_poll(struct pollfd *fds)
{
    const struct thread *thread = me();

    if (fds[3].fd == SOURCE && (thread->sent < thread->to_send || thread->closes))
        fds[3].revents = POLLIN;
    if (fds[4].fd == SINK && fds[4].events)
        fds[4].revents = POLLOUT;
    if (fds[3].revents || fds[4].revents)
        return 1; /* an event that came as well is left for the next time: as if it came later */
    crossroads(2);
    announce(WAITS, &world.event[self]);
    fds[0].revents = POLLIN;
    return 1;
}

static bool receive(void)
{
    uint8_t *span;
    int64_t count = pv_channel_peek(&me()->channel, most, &span);

    if (count == PV_WOULD_BLOCK)
        return false;
    me()->ended = count == PV_CLOSED;
    if (count > 0) {
        check(span, (uint32_t)count);
        pv_channel_consume(&me()->channel, (uint32_t)count);
    } else if (count != PV_CLOSED) {
        report("the channel failed while it was read");
    }
    return true;
}

static bool send_piece(void)
{
    uint8_t bytes[RING];
    uint32_t size = me()->to_send - me()->sent;
    int64_t count;

    size = size < piece ? size : piece;
    for (uint32_t i = 0; i < size; i++)
        bytes[i] = letter(self, me()->sent + i);
    count = pv_channel_send(&me()->channel, bytes, size);
    if (count == PV_WOULD_BLOCK)
        return false;
    me()->ended = count == PV_CLOSED;
    if (count > 0)
        me()->sent += (uint32_t)count;
    else if (count != PV_CLOSED)
        report("the channel failed while it was written");
    return true;
}

static void talk(void)
{
    struct thread *thread = me();

    for (;;) {
        bool moved = false;

        crossroads(3);
        /* An end that reads to the end waits for the close; one that closes only for its bytes. */
        if (!thread->closes || thread->received < thread->to_receive)
            moved = receive();
        if (!thread->ended && thread->sent < thread->to_send)
            moved |= send_piece();
        if (thread->ended || (thread->closes && thread->sent == thread->to_send &&
                              thread->received >= thread->to_receive))
            break;
        if (!moved) {
            announce(WAITS, &world.event[self]);
            model_collect(&thread->channel);
        }
    }
    pv_channel_close(&thread->channel);
}

/* As a Peer does: it sleeps when a turn has armed, also after bytes, and nothing is left to write. */
static void talk_in_turns(void)
{
    struct thread *thread = me();

    for (;;) {
        uint8_t out[RING];
        char in[RING];
        uint32_t size = thread->to_send - thread->sent;
        int64_t sent, got;

        crossroads(5);
        size = size < piece ? size : piece;
        for (uint32_t i = 0; i < size; i++)
            out[i] = letter(self, thread->sent + i);
        got = pv_channel_turn(&thread->channel, out, size, &sent, in, most);
        if (sent > 0)
            thread->sent += (uint32_t)sent;
        if (got > 0)
            check((const uint8_t *)in, (uint32_t)got);
        thread->ended = got == PV_CLOSED;
        if (sent < PV_CLOSED || got < PV_CLOSED)
            report("the channel failed in a turn");
        if (thread->ended || (thread->closes && thread->sent == thread->to_send &&
                              thread->received >= thread->to_receive))
            break;
        if (pv_channel_is_armed(&thread->channel) && (!size || sent == PV_WOULD_BLOCK)) {
            announce(WAITS, &world.event[self]);
            model_collect(&thread->channel);
        }
    }
    pv_channel_close(&thread->channel);
}

static void live(int which)
{
    struct thread *thread = &world.threads[which];

    if (!strncmp(job, "pump", 4)) {
        run(&thread->loop);
        pv_channel_close(&thread->channel);
    } else if (thread->channel.poll.mode != PV_POLL_OFF) {
        talk_in_turns();
    } else {
        talk();
    }
    crossroads(4);
    announce(ENDS, NULL);
}

/* The search */

static uint64_t *known;
static size_t known_size = 1 << 16, known_count;

/* False if the key was there already. */
static bool remember(uint64_t key)
{
    size_t at;

    if (2 * ++known_count > known_size) {
        uint64_t *old = known;
        size_t old_size = known_size;

        known_size *= 4;
        known_count = 1;
        known = calloc(known_size, sizeof *known);
        for (size_t i = 0; known && i < old_size; i++)
            if (old[i])
                remember(old[i]);
        free(old);
    }
    if (!known)
        known = calloc(known_size, sizeof *known);
    if (!known)
        abort();
    key += !key; /* 0 is an empty place */
    for (at = key % known_size; known[at]; at = (at + 1) % known_size)
        if (known[at] == key) {
            known_count--;
            return false;
        }
    known[at] = key;
    return true;
}

/* Everything before the contexts; stale entries of the buffers are kept zero for this. */
static uint64_t state_key(void)
{
    return digest(0, &world, offsetof(struct world, contexts));
}

static bool can_step(int which)
{
    const struct thread *thread = &world.threads[which], *other = &world.threads[!which];

    switch (thread->next) {
    case ENDS:
        return false;
    case WAITS:
        return world.event[which];
    case FENCES:
        return !thread->buffered;
    case STORES:
        return thread->buffered < BUFFER;
    case CHANGES: /* on the newest value: after what the other one has stored there */
        for (unsigned i = 0; i < other->buffered; i++)
            if (other->buffer[i].at == thread->at)
                return false;
        return true;
    default:
        return true;
    }
}

static void step(int which)
{
    self = which;
    swapcontext(&searching, &world.contexts[which]);
}

static void drain_one(struct thread *thread)
{
    struct store *first = thread->buffer;

    path[depth].at = first->at;
    path[depth].value = first->value;
    if (first->size == 1)
        *(volatile uint8_t *)first->at = (uint8_t)first->value;
    else
        *(volatile uint32_t *)first->at = first->value;
    thread->buffered--;
    memmove(first, first + 1, thread->buffered * sizeof *first);
    memset(first + thread->buffered, 0, sizeof *first);
}

static void check_end(void)
{
    const struct thread *one = &world.threads[0], *two = &world.threads[1];

    if (one->next != ENDS || two->next != ENDS)
        report("lost wake-up");
    /* The one that closed said all; the other one reads all of it. */
    if (one->closes && two->received != one->sent)
        report("bytes lost at close");
    if (two->closes && two->received < two->to_receive)
        report("bytes lost before close");
}

static void search(void)
{
    static struct world *saved[DEPTH_MAX];
    bool any = false;

    if (!remember(state_key()))
        return;
    if (!saved[depth])
        saved[depth] = malloc(sizeof world);
    if (!saved[depth] || depth + 1 == DEPTH_MAX)
        abort();
    *saved[depth] = world;
    for (int choice = 0; choice < 4; choice++) {
        int which = choice / 2, drains = choice % 2;
        struct thread *thread = &world.threads[which];

        if (any)
            world = *saved[depth];
        if (drains ? !thread->buffered : !can_step(which))
            continue;
        any = true;
        path[depth] = (struct step){which, drains, thread->next, thread->at, 0};
        if (drains)
            drain_one(thread);
        else
            step(which);
        depth++;
        search();
        depth--;
    }
    if (!any)
        check_end();
}

static void set_up(uint32_t size, uint32_t count)
{
    const uint32_t start = UINT32_MAX - 2;
    struct thread *server = &world.threads[0], *client = &world.threads[1];

    pv_page_init(&world.page, PV_ORDER_PAGES, PV_ORDER_PAGES);
    server->to_send = count;
    client->to_receive = count;
    server->closes = 1;
    if (!strcmp(job, "both") || !strcmp(job, "turns") || !strcmp(job, "mixed")) {
        client->to_send = server->to_receive = count;
    } else if (!strcmp(job, "leave")) {
        server->closes = 0;
        client->closes = 1;
        client->to_receive = count / 2;
    } else if (!strcmp(job, "pumps")) {
        client->to_send = count;
    }
    for (int i = 0; i < 2; i++) {
        struct thread *thread = &world.threads[i];
        struct pv_ring *ring = &thread->channel.ring;

        self = i;
        pv_ring_attach(ring, &world.page, PV_ORDER_PAGES, PV_ORDER_PAGES, world.left, world.right,
                       1, notify_peer, NULL);
        if (i) { /* a client's ring, as its attachment would leave it */
            struct pv_direction in = ring->in;

            ring->in = ring->out;
            ring->in.publish = &world.page.right.cons;
            ring->in.watched = &world.page.right.prod;
            ring->out = in;
            ring->out.publish = &world.page.left.prod;
            ring->out.watched = &world.page.left.cons;
            ring->own_live = &world.page.cli_live;
            ring->peer_live = &world.page.srv_live;
            ring->asking = &world.page.srv_notify;
            ring->asked = &world.page.cli_notify;
        }
        if (!strncmp(job, "turn", 4) || (!strcmp(job, "mixed") && !i))
            thread->channel.poll.mode = PV_POLL_YIELD;
        ring->in.size = ring->out.size = size;
        ring->in.own = ring->in.peer = ring->out.own = ring->out.peer = start;
        thread->loop = (struct loop){
            .pump = &thread->pump,
            .channel = &thread->channel,
            .fd_in = SOURCE,
            .fd_out = SINK,
            .reading = true,
            .writing = true,
            .in_left = UINT64_MAX,
            .out_left = UINT64_MAX,
        };
        getcontext(&world.contexts[i]);
        world.contexts[i].uc_stack.ss_sp = world.stacks[i];
        world.contexts[i].uc_stack.ss_size = STACK;
        makecontext(&world.contexts[i], (void (*)(void))live, 1, i);
    }
    world.page.left.cons = world.page.left.prod = start;
    world.page.right.cons = world.page.right.prod = start;
    world.page.cli_live = PV_LIVE_OPEN;
    world.page.srv_notify = PV_NOTIFY_WRITE;
    world.event[0] = 1;
}

int main(int argc, char **argv)
{
    uint32_t size, count;

    if (argc != 6)
        return 2;
    job = argv[1];
    size = (uint32_t)atoi(argv[2]);
    count = (uint32_t)atoi(argv[3]);
    piece = (uint32_t)atoi(argv[4]);
    most = (uint32_t)atoi(argv[5]);
    if (size > RING || size & (size - 1) || size < 2 || piece > RING)
        return 2;
    set_up(size, count);
    search();
    printf("%zu states, all end well\n", known_count);
    return 0;
}
