/*
 * A hostile peer: peer FD JOB NUMBER. FD is its end of the rendezvous connection; it is the
 * client. This program follows the documented layout and shares no code with the ring.
 *
 *   scribble  random values on every byte of the shared memory, with events in between
 *   indices   impossible indices, each after a few honest ones
 *   liar      possible indices and random data, as fast as it can, without an end
 *   flicker   the live flag takes every value, and 0 between them, again and again
 *   flood     events that no change of the page goes with
 *   drip      one byte with every event
 *   remap     shrinks, grows, seals, punches and unmaps the memory; exits with 3 if it
 *             could do what a seal forbids; otherwise it echoes
 *   brim      as liar, and fills the event counters to the brim each time
 *   die, stop echoes honestly, and kills or stops itself at its step NUMBER; an echo that ends
 *             before that step exits with 0
 *
 * NUMBER seeds the random jobs. They run until the connection hangs up or a signal kills them.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define OFFER 20 /* bytes: magic, server, client, port */
#define PAGE 4096
#define ASK_WRITE 1
#define ASK_READ 2

/* Offsets of 32-bit indices, and of the bytes, in libxenvchan's struct vchan_interface. */
enum { LEFT_CONS = 0, LEFT_PROD = 4, RIGHT_CONS = 8, RIGHT_PROD = 12 };
enum { CLI_LIVE = 20, SRV_LIVE, CLI_NOTIFY, SRV_NOTIFY };

static uint8_t *memory, *left, *right;
static size_t length;
static uint32_t left_size, right_size;
static int connection, memfd, event_fd, notify_fd, fatal;
static long steps_left = -1;
static uint32_t seed;

static uint32_t next(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 7;
}

/* The places where a peer can die. */
static void step(void)
{
    if (fatal && steps_left-- == 0)
        raise(fatal);
}

static uint32_t get(unsigned at)
{
    return __atomic_load_n((uint32_t *)(void *)(memory + at), __ATOMIC_SEQ_CST);
}

static void set(unsigned at, uint32_t value)
{
    __atomic_store_n((uint32_t *)(void *)(memory + at), value, __ATOMIC_SEQ_CST);
}

static uint8_t byte(unsigned at)
{
    return __atomic_load_n(memory + at, __ATOMIC_SEQ_CST);
}

static void notify(void)
{
    eventfd_write(notify_fd, 1);
}

/* Whether the victim is still there. */
static int watched(void)
{
    struct pollfd fd = {.fd = connection, .events = POLLRDHUP};

    return poll(&fd, 1, 0) == 0;
}

static void meet(void)
{
    union {
        char bytes[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    char offer[OFFER];
    struct iovec part = {offer, sizeof offer};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header;
    struct stat status;
    int fds[3];

    step();
    if (recvmsg(connection, &message, MSG_WAITALL) != OFFER)
        exit(2);
    header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_len != CMSG_LEN(sizeof fds))
        exit(2);
    memcpy(fds, CMSG_DATA(header), sizeof fds);
    memfd = fds[0];
    event_fd = fds[1];
    notify_fd = fds[2];
    step();
    if (fstat(memfd, &status) < 0)
        exit(2);
    length = (size_t)status.st_size;
    memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (memory == MAP_FAILED)
        exit(2);
    left_size = 1u << memory[16];
    right_size = 1u << memory[18];
    left = memory + PAGE;
    right = left + left_size;
    step();
    __atomic_fetch_or(memory + SRV_NOTIFY, ASK_WRITE, __ATOMIC_SEQ_CST);
    step();
    memory[CLI_LIVE] = 1;
    step();
    notify();
    step();
    if (send(connection, "\x01", 1, MSG_NOSIGNAL) != 1)
        exit(2);
    step();
}

static void answer(uint8_t bit)
{
    step();
    if (__atomic_fetch_and(memory + CLI_NOTIFY, (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit) {
        step();
        notify();
    }
    step();
}

static void await_news(uint8_t bit, unsigned at, uint32_t unchanged)
{
    struct pollfd fds[2] = {{.fd = event_fd, .events = POLLIN},
                            {.fd = connection, .events = POLLRDHUP}};
    eventfd_t ignored;

    __atomic_fetch_or(memory + SRV_NOTIFY, bit, __ATOMIC_SEQ_CST);
    step();
    if (get(at) != unchanged || !byte(SRV_LIVE))
        return;
    poll(fds, 2, -1);
    if (fds[1].revents)
        exit(0);
    eventfd_read(event_fd, &ignored);
}

/* What comes on the right goes back on the left, until the server closes. */
static void echo(void)
{
    uint8_t bytes[128];

    for (;;) {
        uint32_t cons = get(RIGHT_CONS), count = get(RIGHT_PROD) - cons;

        if (!count && !byte(SRV_LIVE))
            break;
        if (!count) {
            await_news(ASK_WRITE, RIGHT_PROD, cons);
            continue;
        }
        if (count > sizeof bytes)
            count = sizeof bytes;
        for (uint32_t i = 0; i < count; i++)
            bytes[i] = right[(cons + i) % right_size];
        step();
        set(RIGHT_CONS, cons + count);
        answer(ASK_READ);
        for (uint32_t i = 0; i < count && byte(SRV_LIVE); i++) {
            uint32_t prod = get(LEFT_PROD);

            if (prod - get(LEFT_CONS) == left_size) {
                await_news(ASK_READ, LEFT_CONS, prod - left_size);
                i--;
                continue;
            }
            left[prod % left_size] = bytes[i];
            if (i % 64 == 0)
                step();
            set(LEFT_PROD, prod + 1);
        }
        answer(ASK_WRITE);
    }
    step();
    memory[CLI_LIVE] = 0;
    step();
    notify();
}

static void scribble_once(void)
{
    size_t at = next() % 4 ? next() % 24 : next() % length;

    if (next() % 8 == 0)
        set(at & 12u, get(at & 12u) + next() % 64);
    else if (at != CLI_LIVE || next() % 64 == 0) /* else the first thing that shows is a close */
        memory[at] = (uint8_t)next();
    if (next() % 16 == 0)
        notify();
}

/* Takes all that is there and announces that as much came. */
static void lie_once(void)
{
    uint32_t count = left_size - (get(LEFT_PROD) - get(LEFT_CONS));

    left[next() % left_size] = (uint8_t)next();
    set(RIGHT_CONS, get(RIGHT_PROD));
    if (count <= left_size)
        set(LEFT_PROD, get(LEFT_PROD) + (count ? next() % (count + 1) : 0));
    notify();
}

static void lie_badly(uint32_t round)
{
    static const unsigned at[] = {LEFT_PROD, RIGHT_CONS};

    if (round < 200)
        lie_once();
    else
        set(at[next() % 2], next() % 2 ? get(LEFT_CONS) + left_size + 1 + next() % 9 : next() << 8);
    notify();
}

static int refused(int result, int error)
{
    return result < 0 && errno == error;
}

static void remap(void)
{
    const int hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    int held = refused(ftruncate(memfd, 0), EPERM);

    held &= refused(ftruncate(memfd, PAGE), EPERM);
    held &= refused(ftruncate(memfd, (off_t)length * 2), EPERM);
    held &= refused(fallocate(memfd, 0, (off_t)length, PAGE), EPERM);
    held &= refused(fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
    held &= refused(fcntl(memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), EPERM);
    if (!held)
        exit(3);
    /* Not forbidden, and harmless: pages that go come back as zeros. */
    if (fallocate(memfd, hole, PAGE, (off_t)left_size) < 0 ||
        madvise(left, left_size, MADV_REMOVE) < 0)
        exit(2);
    if (mmap(memory, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd, 0) != memory)
        exit(2);
    echo();
}

static void brim(void)
{
    eventfd_write(notify_fd, UINT64_MAX - 1);
    eventfd_write(event_fd, UINT64_MAX - 1);
    lie_once();
}

int main(int argc, char **argv)
{
    const char *job;
    uint32_t round = 0;

    if (argc != 4)
        return 2;
    connection = atoi(argv[1]);
    job = argv[2];
    seed = (uint32_t)atoi(argv[3]);
    if (!strcmp(job, "die") || !strcmp(job, "stop")) {
        fatal = job[0] == 'd' ? SIGKILL : SIGSTOP;
        steps_left = (long)seed;
        meet();
        echo();
        return 0;
    }
    meet();
    if (!strcmp(job, "remap")) {
        remap();
        return 0;
    }
    for (; round % 1024 || watched(); round++) {
        if (!strcmp(job, "scribble"))
            scribble_once();
        else if (!strcmp(job, "indices"))
            lie_badly(round);
        else if (!strcmp(job, "liar"))
            lie_once();
        else if (!strcmp(job, "flicker"))
            /* 0 every other time: of 256 values a look may miss one a thousand times. */
            memory[CLI_LIVE] = round & 1 ? (uint8_t)(round >> 1) : 0, notify();
        else if (!strcmp(job, "flood"))
            notify();
        else if (!strcmp(job, "drip"))
            set(LEFT_PROD, get(LEFT_PROD) + (get(LEFT_PROD) - get(LEFT_CONS) < left_size)), notify();
        else if (!strcmp(job, "brim"))
            brim();
        else
            return 2;
    }
    return 0;
}
