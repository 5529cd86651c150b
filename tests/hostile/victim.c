/*
 * Our side of a channel, against the hostile peer: victim PEER JOB NUMBER SIDE MILLISECONDS.
 * This program starts PEER (peer.c) as another process, sets up a channel to it as shm.py does, and
 * sends and receives as much as it can until the channel ends or the time is over. SIDE is stream
 * (by pv_channel_send and _peek), turns (by pv_channel_turn, spinning, on a muted channel) or pump.
 * The tests build it with sanitizers.
 *
 * For the jobs die and stop it does so once for every step at which the peer can die, from step
 * NUMBER on. The bytes that come back must be the beginning of those that were sent, and this side
 * must notice the end within LIMIT.
 *
 * Prints one line a run, for a test to judge: "end CODE ms M wakes W received R cpu_us C", with a
 * PV_ code or "time" as CODE (for a pump its enum pv_pump_why), and the most processor time that
 * one call took. Exits with 1 when a check in here fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "pump.h"
#include "shm.h"

#define ORDER PV_ORDER_PAGES /* 4 KiB: full soon, so every way of waiting is taken */
#define LIMIT 1000           /* ms until an end must have been noticed */
#define ECHOED 9000          /* bytes for an honest peer: more than both rings hold */
#define PIECE 777
#define TIME_OVER 1 /* no PV_ code is positive */

static const char *peer_program, *job;
static bool takes_turns;
static int children; /* a signalfd: a child has stopped or ended */

struct run {
    struct pv_channel *channel;
    pid_t peer;
    bool honest;             /* the job is one in which what comes back must be what was sent */
    bool stopped, dead;      /* the peer is */
    uint32_t sent, received; /* bytes; modulo 2^32 with a peer that lies */
    unsigned wakes;
    int64_t longest_us; /* of processor time in one call */
};

static void die(const char *what, int64_t code)
{
    fprintf(stderr, "victim: %s (%lld)\n", what, (long long)code);
    _exit(1);
}

static int64_t clock_us(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

static int64_t measured(struct run *run, int64_t before, int64_t result)
{
    int64_t took = clock_us(CLOCK_THREAD_CPUTIME_ID) - before;

    if (took > run->longest_us)
        run->longest_us = took;
    return result;
}

/* Measures one call of the code under test. */
#define TIMED(run, call) measured(run, clock_us(CLOCK_THREAD_CPUTIME_ID), (call))

/* Not by fork: under the sanitizers it would take most of this program's time. */
static pid_t start_peer(int connection, char *number)
{
    char fd[12];
    char *arguments[] = {(char *)peer_program, fd, (char *)job, number, NULL}, *nothing[] = {NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    pid_t pid;
    sigset_t none;
    int error;

    snprintf(fd, sizeof fd, "%d", connection);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, connection, connection); /* it stays open */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    error = posix_spawn(&pid, peer_program, &files, &attributes, arguments, nothing);
    if (error)
        die("spawn", error);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return pid;
}

/* Empties the signalfd, whose report may be outdated, and asks for the child's state. */
static void watch_child(struct run *run)
{
    struct signalfd_siginfo ignored;
    ssize_t size = read(children, &ignored, sizeof ignored);
    int status;

    (void)size;
    if (run->dead || waitpid(run->peer, &status, WNOHANG | WUNTRACED) != run->peer)
        return;
    if (WIFSTOPPED(status))
        run->stopped = true;
    else
        run->dead = true;
}

/* False if the peer was gone before it had attached itself. */
static bool meet(struct run *run, long number)
{
    char offer[20] = "hostile", answer, text[24];
    union {
        char bytes[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr aligned;
    } control = {0};
    struct iovec part = {offer, sizeof offer};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int fds[3], ends[2];
    int error = pv_shm_create(ORDER, ORDER, &run->channel, fds);

    if (error < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        die("create", error);
    snprintf(text, sizeof text, "%ld", number);
    run->peer = start_peer(ends[1], text);
    close(ends[1]);
    *header = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fds)};
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    sendmsg(ends[0], &message, MSG_NOSIGNAL);
    close(fds[0]);
    for (;;) { /* against a peer that stops here the rendezvous has its time-out */
        struct pollfd both[2] = {{.fd = ends[0], .events = POLLIN},
                                 {.fd = children, .events = POLLIN}};

        poll(both, 2, -1);
        if (both[0].revents)
            break;
        watch_child(run);
        if (run->stopped)
            kill(run->peer, SIGKILL);
    }
    if (recv(ends[0], &answer, 1, 0) != 1) {
        close(ends[0]);
        return false;
    }
    error = pv_channel_watch(run->channel, ends[0]);
    if (error < 0)
        die("watch", error);
    return true;
}

static uint8_t letter(uint32_t position)
{
    return (uint8_t)(position * 31 + position / 256);
}

static void check(struct run *run, const uint8_t *bytes, int64_t count)
{
    for (int64_t i = 0; run->honest && i < count; i++)
        if (bytes[i] != letter(run->received + (uint32_t)i))
            die("wrong byte", run->received + i);
    run->received += (uint32_t)count;
}

/* Looks at each direction once; returns a PV_ code, or whether bytes moved. */
static int64_t move(struct run *run)
{
    uint8_t piece[PIECE], *span;
    int64_t in = TIMED(run, pv_channel_peek(run->channel, PIECE, &span)), out = PV_WOULD_BLOCK;
    uint32_t size = PIECE;

    if (in > PIECE)
        die("more than was asked for", in);
    if (in > 0) {
        memcpy(piece, span, (size_t)in); /* touches every byte that we were told to be there */
        check(run, piece, in);
        TIMED(run, (pv_channel_consume(run->channel, (uint32_t)in), 0));
    }
    if (in < PV_WOULD_BLOCK)
        return in;
    if (run->honest && size > ECHOED - run->sent)
        size = ECHOED - run->sent;
    for (uint32_t i = 0; i < size; i++)
        piece[i] = letter(run->sent + i);
    if (size)
        out = TIMED(run, pv_channel_send(run->channel, piece, size));
    if (out > (int64_t)size)
        die("more than was sent", out);
    if (out > 0)
        run->sent += (uint32_t)out;
    return in > 0 || out > 0;
}

/* The same by one call of pv_channel_turn. */
static int64_t turn(struct run *run)
{
    uint8_t out[PIECE];
    char in[PIECE];
    uint32_t size = run->honest && PIECE > ECHOED - run->sent ? ECHOED - run->sent : PIECE;
    int64_t sent, got;

    for (uint32_t i = 0; i < size; i++)
        out[i] = letter(run->sent + i);
    got = TIMED(run, pv_channel_turn(run->channel, out, size, &sent, in, sizeof in));
    if (got > PIECE || sent > (int64_t)size)
        die("more than there was in a turn", got);
    if (got == PV_WOULD_BLOCK && !pv_channel_is_armed(run->channel))
        die("a turn found nothing and did not arm", sent);
    if (sent > 0)
        run->sent += (uint32_t)sent;
    if (got > 0)
        check(run, (const uint8_t *)in, got);
    return got < PV_WOULD_BLOCK ? got : got > 0 || sent > 0;
}

static int64_t act(struct run *run)
{
    return takes_turns ? turn(run) : move(run);
}

/* Until the channel ends, or the time is over. */
static int64_t stream(struct run *run, int64_t until)
{
    if (takes_turns) {
        run->channel->poll.mode = PV_POLL_SPIN;
        if (pv_channel_mute(run->channel, 1) < 0)
            die("mute", errno);
    }
    for (;;) {
        int64_t result = act(run), left = (until - clock_us(CLOCK_MONOTONIC)) / 1000;
        /* On a muted channel the event shows only at its own descriptor. */
        struct pollfd fds[3] = {{.fd = pv_channel_wait_fd(run->channel), .events = POLLIN},
                                {.fd = children, .events = POLLIN},
                                {.fd = pv_channel_event_fd(run->channel), .events = POLLIN}};

        if (result < 0)
            return result;
        if (run->honest && run->received == ECHOED)
            pv_channel_close(run->channel); /* the peer then does the same */
        if (left <= 0)
            return TIME_OVER;
        if (result)
            continue;
        poll(fds, takes_turns ? 3 : 2, run->stopped ? 0 : (int)left);
        if (fds[1].revents)
            watch_child(run);
        if (fds[2].revents) {
            run->wakes++;
            TIMED(run, (pv_channel_woken(run->channel), 0));
        } else if (fds[0].revents) {
            run->wakes++;
            TIMED(run, (pv_channel_collect(run->channel), 0));
        } else if (run->stopped) {
            return TIME_OVER; /* it is quiet: neither end moves bytes any more */
        }
    }
}

struct pumping {
    struct run *run;
    struct pv_pump pump;
    int inside, outside;
};

static void *run_pump(void *arg)
{
    struct pumping *pumping = arg;

    pv_pump_run(&pumping->pump, pumping->run->channel, pumping->inside, pumping->inside);
    shutdown(pumping->inside, SHUT_RDWR); /* the other thread sees the end */
    return NULL;
}

/* The same through a pump in a thread, whose descriptors we feed and empty. */
static int64_t pump(struct run *run, int64_t until)
{
    struct pumping pumping = {.run = run};
    bool ended = false;
    int ends[2], error = pv_pump_init(&pumping.pump);
    pthread_t thread;
    struct timespec limit;

    if (error < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        die("pump", error);
    pumping.inside = ends[0];
    pumping.outside = ends[1];
    if (pthread_create(&thread, NULL, run_pump, &pumping) != 0)
        die("thread", errno);
    while (!ended) {
        int64_t left = (until - clock_us(CLOCK_MONOTONIC)) / 1000;
        uint8_t piece[PIECE];
        bool sends = !run->honest || run->sent < ECHOED;
        struct pollfd fds[2] = {{.fd = ends[1], .events = POLLIN | (sends ? POLLOUT : 0)},
                                {.fd = children, .events = POLLIN}};
        ssize_t count;

        if (left <= 0 || (run->stopped && !left))
            break;
        poll(fds, 2, run->stopped ? 0 : (int)left);
        if (run->stopped && !fds[0].revents)
            break;
        if (fds[1].revents)
            watch_child(run);
        if (fds[0].revents & POLLIN) {
            count = recv(ends[1], piece, sizeof piece, MSG_DONTWAIT);
            ended = count == 0;
            if (count > 0)
                check(run, piece, count);
            if (run->honest && run->received == ECHOED)
                shutdown(ends[1], SHUT_WR);
        } else if (fds[0].revents & POLLOUT) {
            uint32_t size = run->honest && PIECE > ECHOED - run->sent ? ECHOED - run->sent : PIECE;

            for (uint32_t i = 0; i < size; i++)
                piece[i] = letter(run->sent + i);
            count = send(ends[1], piece, size, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (count > 0)
                run->sent += (uint32_t)count;
        } else if (fds[0].revents) {
            ended = true;
        }
    }
    if (run->stopped) {
        kill(run->peer, SIGKILL); /* the pump must find out by itself */
    } else if (!ended) {
        pv_pump_cancel(&pumping.pump);
    }
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += LIMIT / 1000;
    if (pthread_timedjoin_np(thread, NULL, &limit) != 0)
        die("the pump did not notice the end", pumping.pump.why);
    close(ends[0]);
    close(ends[1]);
    pv_pump_done(&pumping.pump);
    return pumping.pump.why;
}

/* Runs one peer; false once the peer came to the end of an honest echo. */
static bool meet_once(long number, bool pumps, int64_t milliseconds)
{
    struct run run = {.honest = !strcmp(job, "die") || !strcmp(job, "stop") ||
                                !strcmp(job, "remap")};
    int64_t start, end = 0;
    int status;

    if (meet(&run, number)) {
        start = clock_us(CLOCK_MONOTONIC);
        end = (pumps ? pump : stream)(&run, start + milliseconds * 1000);
        if (!pumps && run.stopped) {
            kill(run.peer, SIGKILL);
            run.stopped = false;
            start = clock_us(CLOCK_MONOTONIC);
            end = stream(&run, start + LIMIT * 1000);
        }
        for (int i = 0; !pumps && end < 0 && end != PV_CLOSED && i < 3; i++)
            if (act(&run) != end)
                die("an end that does not last", end);
        if (run.honest && end == TIME_OVER && !pumps)
            die("the end was not noticed", number);
        printf("end %lld ms %lld wakes %u received %u cpu_us %lld\n", (long long)end,
               (long long)(clock_us(CLOCK_MONOTONIC) - start) / 1000, run.wakes, run.received,
               (long long)run.longest_us);
    }
    pv_channel_free(run.channel);
    if (!run.dead) {
        if (!run.honest)
            kill(run.peer, SIGKILL);
        for (;;) {
            if (waitpid(run.peer, &status, WUNTRACED) != run.peer)
                die("wait", errno);
            if (!WIFSTOPPED(status))
                break;
            kill(run.peer, SIGKILL);
        }
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
            die("the peer had its way, or failed", WEXITSTATUS(status));
        if (run.honest && WIFEXITED(status))
            return false;
    } else if (run.honest && run.received == ECHOED) {
        return false; /* it died after its echo was complete; no step is left to try */
    }
    return true;
}

int main(int argc, char **argv)
{
    sigset_t mask;
    bool pumps;
    long number;

    if (argc != 6)
        return 2;
    peer_program = argv[1];
    job = argv[2];
    number = atol(argv[3]);
    pumps = !strcmp(argv[4], "pump");
    takes_turns = !strcmp(argv[4], "turns");
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    children = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (strcmp(job, "die") && strcmp(job, "stop")) {
        meet_once(number, pumps, atol(argv[5]));
        return 0;
    }
    while (meet_once(number, pumps, atol(argv[5])))
        number++;
    printf("steps %ld\n", number);
    return 0;
}
