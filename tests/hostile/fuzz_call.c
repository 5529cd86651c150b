/*
 * libFuzzer's target for the pump of a call: the input is a script of what the other VM writes into
 * the ring, of what the programs at this end do with their streams, and of what a service's keeper
 * says. It goes on where the pump would sleep: poll(2) is ours. Whatever happens, the pump may not sleep without anything that could
 * wake it, nor run without end, and once the other VM has closed and all programs are gone it ends.
 */
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int real_poll(struct pollfd *fds, nfds_t count)
{
    return poll(fds, count, 0);
}

int world_poll(struct pollfd *fds, nfds_t count, int timeout);
int world_clock(clockid_t clock, struct timespec *now);

#define poll world_poll
#define clock_gettime world_clock

#include "call_fd.c"
#include "call_frames.c"
#include "call_streams.c"
#include "call_talk.c"
#include "call_keeper.c"
#include "call_pump.c"

#define CHECK(what)  \
    do {             \
        if (!(what)) \
            abort(); \
    } while (0)

#define ORDER PV_ORDER_PAGES /* 4 KiB: full soon */
#define STEPS 4096           /* sleeps of one run: more than a script has steps */
#define TURNS 100000         /* looks of one run */

static struct script {
    const uint8_t *at, *end;
} script;

static uint32_t take(unsigned bytes)
{
    uint32_t value = 0;

    for (; bytes && script.at < script.end; bytes--)
        value = value << 8 | *script.at++;
    return value;
}

/* The page, with the other VM's end of the ring. */
static struct {
    _Alignas(8) uint8_t page[PV_PAGE_SIZE];
    uint8_t left[1 << ORDER], right[1 << ORDER];
} shared;
static struct pv_ring other;
static struct pv_channel channel;
static struct pv_call *call;
static const uint8_t ID[PV_CALL_ID] = "the call's name";
static int programs[3]; /* the programs' ends of stdin, stdout and stderr; -1: closed */
static int ours[3];
static int keeper, link_fd; /* its end and ours; -1: closed, or none */
static int64_t clock_ms;
static unsigned sleeps, notified;
static int scribbled; /* over what we have written, too */

static void our_notify(void *arg)
{
    (void)arg;
}

static void their_notify(void *arg)
{
    (void)arg;
    notified++;
}

static int clear(struct pv_channel *mine)
{
    (void)mine;
    notified = 0;
    return 1;
}

int world_clock(clockid_t clock, struct timespec *now)
{
    (void)clock;
    *now = (struct timespec){clock_ms / 1000, clock_ms % 1000 * 1000000};
    return 0;
}

static void say(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t *span;

        if (pv_ring_writable(&other, &span) <= 0)
            return;
        *span = bytes[i];
        pv_ring_produce(&other, 1);
    }
}

/* A frame, most often one that has its right form. */
static void say_frame(void)
{
    uint8_t frame[PV_CALL_HEADER + 1024] = {0};
    uint8_t what = (uint8_t)take(1);
    int type = what % PV_CALL_TYPES;
    uint32_t length = 0;

    if (FORMS[type].senders)
        length = FORMS[type].least + take(1) % 4 * (FORMS[type].most > FORMS[type].least ? 60 : 0);
    if (what >= 224)
        length = take(what % 4 + 1);
    pv_call_header_write(frame, type, length);
    if (type == PV_CALL_CALL || type == PV_CALL_STARTED)
        memcpy(frame + PV_CALL_HEADER, ID, PV_CALL_ID);
    else
        for (uint32_t i = 0; i < 8 && i < length; i += 4)
            frame[PV_CALL_HEADER + i] = (uint8_t)take(1);
    say(frame, PV_CALL_HEADER + (length < 1024 ? length : 1024));
}

/* The other VM reads what there is, which must be right frames of our side, in their turn. */
static struct pv_call_progress seen;

static void hear(void)
{
    uint8_t frame[PV_CALL_HEADER + PV_CALL_CONTROL_MAX];
    uint32_t length;
    int type;

    for (;;) {
        int64_t ready = pv_ring_ready(&other);
        const char *why;

        if (ready < PV_CALL_HEADER || scribbled)
            return;
        pv_ring_copy(&other, 0, frame, PV_CALL_HEADER);
        why = pv_call_header_read(frame, call->side, &type, &length);
        CHECK(!why && (uint32_t)ready >= PV_CALL_HEADER + length);
        if (length && length <= PV_CALL_CONTROL_MAX)
            pv_ring_copy(&other, PV_CALL_HEADER, frame + PV_CALL_HEADER, length);
        /* Its own states alone: what this side knows of the other's is behind or ahead of it. */
        CHECK(pv_call_next(call->side, seen.states[call->side], type) >= 0);
        seen.states[call->side] =
            (uint8_t)pv_call_next(call->side, seen.states[call->side], type);
        pv_ring_consume(&other, PV_CALL_HEADER + length);
    }
}

static void use(int which, int what)
{
    uint8_t bytes[3000];
    ssize_t ignored = 0;

    if (programs[which] < 0)
        return;
    if (what == 0) {
        close(programs[which]);
        programs[which] = -1;
    } else if (what == 1) {
        shutdown(programs[which], SHUT_WR);
    } else if (what == 2) {
        ignored = recv(programs[which], bytes, sizeof bytes, MSG_DONTWAIT);
    } else {
        ignored = send(programs[which], bytes, take(1) * 11, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    (void)ignored;
}

static void order_something(uint8_t what)
{
    switch (what % 6) {
    case 0:
        pv_call_abort(call, ID, take(1) % PV_CALL_ID);
        return;
    case 1:
        if (call->side == PV_CALL_CALLER)
            pv_call_signal(call, (int)(take(1) % PV_CALL_SIGNAL_MAX) + 1);
        return;
    case 2:
    case 3:
        if (call->side == PV_CALL_SERVICE)
            pv_call_exit(call, PV_CALL_EXITED, take(1), ID, take(1) % PV_CALL_ID, what & 1);
        return;
    case 4:
        if (call->side == PV_CALL_SERVICE)
            pv_call_main_exited(call, take(1));
        return;
    default:
        clock_ms += take(1) * 10;
    }
}

/* A word of the keeper: one that is known, nearly such a one, or anything; or its end. */
static void keeper_says(uint8_t what)
{
    uint8_t word[32];
    size_t length = sizeof SPAWNED;
    ssize_t ignored;

    if (keeper < 0)
        return;
    memcpy(word, SPAWNED, sizeof SPAWNED);
    if (what % 4 == 1) {
        bool has_exited = take(1) & 1;

        length = has_exited ? sizeof EXITED : sizeof SIGNALLED;
        memcpy(word, has_exited ? EXITED : SIGNALLED, length);
        word[length++] = (uint8_t)take(1);
        if (word[length - 1] == ONE_BYTE)
            word[length++] = (uint8_t)take(1);
    } else if (what % 4 == 2) {
        word[take(1) % length] = (uint8_t)take(1);
        length = take(1) % sizeof word;
    } else if (what % 4 == 3) {
        shutdown(keeper, SHUT_RDWR);
        return;
    }
    ignored = send(keeper, word, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)ignored;
}

static void everything_ends(void)
{
    if (keeper >= 0)
        close(keeper);
    keeper = -1;
    for (int i = 0; i < 3; i++)
        use(i, 0);
    pv_ring_close(&other);
}

static void step(void)
{
    uint8_t what = (uint8_t)take(1);

    if (script.at >= script.end)
        everything_ends();
    else if (what < 120)
        say_frame();
    else if (what < 130)
        say(script.at, script.end - script.at < 16 ? (size_t)(script.end - script.at) : 16);
    else if (what < 160)
        hear();
    else if (what < 200)
        use(what % 3, what / 3 % 4);
    else if (what < 240)
        order_something(what);
    else if (what < 244)
        pv_ring_close(&other);
    else if (what < 248)
        scribbled = shared.left[take(1) * 16] = shared.right[take(1) * 16] = (uint8_t)take(1) | 1;
    else if (what < 250)
        other.out.own += take(2), *other.out.publish = other.out.own;
    else
        keeper_says((uint8_t)take(1));
}

/* What the pump sleeps on. */
int world_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int ready = 0;

    CHECK(++sleeps < STEPS);
    CHECK(timeout <= PV_CALL_END_MS);
    step();
    /* A script that is over has no other news: a pump that still sleeps would do so for ever. */
    if (script.at >= script.end && timeout >= 0)
        clock_ms += timeout;
    for (nfds_t i = 0; i < count; i++) {
        struct pollfd *each = &fds[i];

        each->revents = 0;
        if (each->fd < 0)
            continue;
        if (each->fd == channel.event_fd)
            each->revents = notified ? POLLIN : 0;
        else
            real_poll(each, 1);
        ready += each->revents != 0;
    }
    return ready;
}

/* The first word of a keeper. One that is not taken is still there, and nothing was said before. */
static void meet(void)
{
    uint8_t word[32];
    ssize_t length;
    int error;

    if (pv_keeper_meet(call, &error))
        return;
    length = recv(link_fd, word, sizeof word, MSG_DONTWAIT);
    CHECK(error || length >= 0);
    CHECK(length != sizeof SPAWNED || memcmp(word, SPAWNED, sizeof SPAWNED) != 0);
    CHECK(!channel.ring.closed && pv_ring_ready(&other) == PV_WOULD_BLOCK && !call->notes);
}

static void begin(void)
{
    int pairs[3][2], link[2], side = (int)take(1) % 2;
    uint8_t given = (uint8_t)take(1);

    memset(&shared, 0, sizeof shared);
    channel = (struct pv_channel){.event_fd = 0, .live_fd = -1, .wait_fd = -1, .clear = clear};
    pv_page_init((struct vchan_interface *)shared.page, ORDER, ORDER);
    pv_ring_attach(&channel.ring, (struct vchan_interface *)shared.page, ORDER, ORDER,
                   shared.left, shared.right, side == PV_CALL_CALLER, our_notify, NULL);
    pv_ring_attach(&other, (struct vchan_interface *)shared.page, ORDER, ORDER, shared.left,
                   shared.right, side != PV_CALL_CALLER, their_notify, NULL);
    if (side == PV_CALL_SERVICE)
        ((struct vchan_interface *)shared.page)->srv_live = PV_LIVE_OPEN;
    clock_ms = 1000;
    sleeps = notified = 0;
    scribbled = 0;
    call = pv_call_new(side, ID);
    CHECK(call);
    pv_call_begin(&seen, ID);
    for (int i = 0; i < 3; i++) {
        programs[i] = ours[i] = -1;
        if (!(given & 1 << i))
            continue;
        CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]));
        ours[i] = pairs[i][0];
        programs[i] = pairs[i][1];
        int small = 2048;
        setsockopt(ours[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    }
    keeper = link_fd = -1;
    if (side == PV_CALL_SERVICE && given & 16) {
        CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, link));
        keeper = link[0];
        link_fd = link[1];
        pv_keeper_follow(call, link_fd, given & 32);
    }
    meet();
    CHECK(!pv_call_take(call, ours[0], ours[1], ours[2], given & 8));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct pv_call_result *result;
    unsigned turns = 0;
    int number;

    script = (struct script){data, data + size};
    begin();
    while (pv_call_run(call, &channel, &number) != PV_CALL_DONE)
        CHECK(++turns < TURNS);
    result = pv_call_result(call);
    CHECK(result->text_length <= PV_CALL_TEXT_MAX);
    CHECK((result->why == PV_CALL_BREACH) == (result->breach != NULL));
    CHECK(result->why != PV_CALL_FAILED); /* a step of our own that the rules refuse */
    CHECK(channel.ring.closed == (result->why != PV_CALL_FINE));
    for (int i = 0; i < 2; i++) {
        CHECK(call->inward[i].have <= pv_call_window(call->inward[i].stream));
        CHECK(call->inward[i].fd.fd < 0 && call->outward[i].fd.fd < 0);
    }
    if (result->why == PV_CALL_FINE) {
        CHECK(result->kind);
        hear();
        CHECK(scribbled || seen.states[call->side] == PV_CALL_ENDED);
    }
    pv_call_free(call);
    for (int i = 0; i < 3; i++)
        use(i, 0);
    if (keeper >= 0)
        close(keeper);
    if (link_fd >= 0)
        CHECK(!close(link_fd)); /* nobody else has */
    return 0;
}
