/*
 * An end of a call against a hostile process: call_victim SIDE ROUNDS. SIDE is ours, caller or
 * service. In each round another process speaks frames of the other side, right ones and wrong
 * ones, and changes them in the shared memory after it has published them, while a thread here runs
 * the pump and the programs' ends of the streams are written, read and closed. It stops after a
 * while, by a close or by death. The tests build this with sanitizers.
 *
 * The pump has to end within LIMIT after that. Prints "rounds N" with how many calls ended in each
 * way; exits with 1 when a promise is broken.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "call_keeper.h"
#include "call_pump.h"
#include "shm.h"

#define ORDER 14
#define SIZE (1u << ORDER)
#define LIMIT 5 /* s; a machine that does much else is slow */
#define FRAMES 400 /* of a hostile process, at most */

static const uint8_t ID[PV_CALL_ID] = "the call's name";
static uint32_t seed;

static uint32_t next(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 7;
}

static void die(const char *what, long long code)
{
    fprintf(stderr, "call_victim: %s (%lld)\n", what, code);
    _exit(1);
}

/* ---- the hostile process ---- */

static struct vchan_interface *page;
static uint8_t *out;               /* its ring */
static struct pv_indices *indices; /* of it */

static void put(const uint8_t *bytes, uint32_t count)
{
    uint32_t prod = indices->prod;

    for (int tries = 0; SIZE - (prod - __atomic_load_n(&indices->cons, __ATOMIC_ACQUIRE)) < count;)
        if (++tries == 20 || usleep(20))
            return;
    for (uint32_t i = 0; i < count; i++)
        out[(prod + i) % SIZE] = bytes[i];
    __atomic_store_n(&indices->prod, prod + count, __ATOMIC_RELEASE);
}

/* A service's keeper says what it should, or anything. */
static void say_as_keeper(int keeper)
{
    static const uint8_t words[3][11] = {{0x94, 12, 0xc2, 0xc2, 0xc2},
                                         {0x93, 17, 0xa6, 'e', 'x', 'i', 't', 'e', 'd', 3},
                                         {0x93, 17, 0xa6, 'e', 'x', 'i', 't', 'e', 'd', 0xcc, 200}};
    static const size_t lengths[] = {5, 10, 11};
    uint8_t word[64];
    uint32_t which = next() % 4, length = which < 3 ? (uint32_t)lengths[which] : next() % 64;
    ssize_t ignored;

    for (uint32_t i = 0; i < length; i++)
        word[i] = which < 3 ? words[which][i] : (uint8_t)next();
    ignored = send(keeper, word, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)ignored;
}

static void attack(int side, int notify_fd, int keeper)
{
    static const uint8_t callers[] = {PV_CALL_STDIN, PV_CALL_STDIN, PV_CALL_STDOUT_CREDIT,
                                      PV_CALL_STDERR_CREDIT, PV_CALL_SIGNAL,
                                      PV_CALL_STDOUT_CLOSED, PV_CALL_STDIN_EOF, PV_CALL_ABORT};
    static const uint8_t services[] = {PV_CALL_STDOUT, PV_CALL_STDERR, PV_CALL_STDOUT,
                                       PV_CALL_STDIN_CREDIT, PV_CALL_MAIN_EXITED,
                                       PV_CALL_STDIN_CLOSED, PV_CALL_STDERR_EOF, PV_CALL_EXIT};
    uint8_t frame[PV_CALL_HEADER + 4096] = {0};
    unsigned frames = next() % FRAMES, wild = next() % 4;

    /* A service's answer has its call before it. */
    for (int tries = 0; side == PV_CALL_SERVICE && tries < 1000; tries++)
        if (__atomic_load_n(&page->right.prod, __ATOMIC_ACQUIRE) || usleep(20))
            break;
    pv_call_header_write(frame, side == PV_CALL_CALLER ? PV_CALL_CALL : PV_CALL_STARTED, PV_CALL_ID);
    memcpy(frame + PV_CALL_HEADER, ID, PV_CALL_ID);
    put(frame, PV_CALL_HEADER + PV_CALL_ID);
    eventfd_write(notify_fd, 1);
    if (keeper >= 0)
        say_as_keeper(keeper);
    for (unsigned i = 0; i < frames && __atomic_load_n(&page->srv_live, __ATOMIC_ACQUIRE); i++) {
        /* Two of four keep within their rights, until they stop in the middle of it. */
        uint32_t which = next() % (wild > 1 ? 1 : i < frames / 4 * 3 ? 2 : 8), at = indices->prod;
        int type = (side == PV_CALL_CALLER ? callers : services)[which];
        uint32_t length = type == PV_CALL_STDIN || type == PV_CALL_STDOUT || type == PV_CALL_STDERR
                              ? next() % 4000 + 1
                          : type == PV_CALL_EXIT ? 8 + next() % 200
                          : which > 4 && type != PV_CALL_SIGNAL ? 0
                                                                : 4;

        pv_call_header_write(frame, type, length);
        for (uint32_t j = 0; j < 8; j++)
            frame[PV_CALL_HEADER + j] = (uint8_t)(j % 4 ? 0 : next() % 70);
        put(frame, PV_CALL_HEADER + length);
        if (keeper >= 0 && next() % 64 == 0)
            say_as_keeper(keeper);
        if (next() % 8 == 0)
            eventfd_write(notify_fd, 1);
        /* A frame that changes while it is read: its type, its length, or what follows. */
        if (wild == 0)
            for (int j = 0; j < 8; j++)
                out[(at + next() % (PV_CALL_HEADER + length)) % SIZE] = (uint8_t)next();
        if (wild == 1)
            out[next() % SIZE] = (uint8_t)next();
    }
    if (next() % 2) {
        __atomic_store_n(&page->cli_live, 0, __ATOMIC_RELEASE);
        eventfd_write(notify_fd, 1);
    }
    _exit(0);
}

/* ---- our end ---- */

struct run {
    struct pv_call *call;
    struct pv_channel *channel;
    int ours[3];
    unsigned events;
};

static void *run_call(void *arg)
{
    struct run *run = arg;
    int number, error;

    if (!pv_keeper_meet(run->call, &error) && error)
        die("a keeper that cannot be heard", error);
    if (pv_call_take(run->call, run->ours[0], run->ours[1], run->ours[2], 0) < 0)
        die("take", errno);
    while (pv_call_run(run->call, run->channel, &number) != PV_CALL_DONE)
        run->events++;
    return NULL;
}

/* What programs do with their ends of the streams, until the hostile process is gone. */
static void use_streams(struct pv_call *call, int programs[3], pid_t pid)
{
    uint8_t bytes[5000] = {0};

    while (waitpid(pid, NULL, WNOHANG) == 0) {
        int which = (int)(next() % 3);
        ssize_t ignored = 0;

        if (next() % 4096 == 0) {
            close(programs[which]);
            programs[which] = -1;
        } else if (next() % 2) {
            ignored = recv(programs[which], bytes, next() % sizeof bytes, MSG_DONTWAIT);
        } else {
            ignored = send(programs[which], bytes, next() % sizeof bytes,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        (void)ignored;
        if (call && next() % 1024 == 0)
            pv_call_exit(call, PV_CALL_EXITED, 1, ID, 0, next() % 2);
        if (next() % 16 == 0)
            usleep(10);
    }
}

static int play(int side)
{
    int fds[3], live[2], programs[3], link[2] = {-1, -1}, error;
    struct run run = {.call = pv_call_new(side, ID)};
    struct timespec limit;
    pthread_t thread;
    pid_t pid;
    int why;

    error = pv_shm_create(ORDER, ORDER, &run.channel, fds);
    if (error < 0 || !run.call || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, live) < 0)
        die("create", error);
    for (int i = 0; i < 3; i++) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
            die("socketpair", errno);
        run.ours[i] = pair[0];
        programs[i] = pair[1];
    }
    if (side == PV_CALL_SERVICE && next() % 2)
        pv_call_exit(run.call, PV_CALL_EXITED, 0, ID, 0, next() % 2);
    if (side == PV_CALL_SERVICE && next() % 2) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, link) < 0)
            die("socketpair", errno);
        pv_keeper_follow(run.call, link[0], next() % 4 == 0);
    }
    pid = fork();
    if (pid < 0)
        die("fork", errno);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(live[0]);
        for (int i = 0; i < 3; i++) {
            close(programs[i]);
            close(run.ours[i]);
        }
        page = mmap(NULL, pv_layout_size(ORDER, ORDER), PROT_READ | PROT_WRITE, MAP_SHARED, fds[0],
                    0);
        if (page == MAP_FAILED)
            _exit(2);
        /* We are the server of the ring: what it writes is on the left. */
        indices = &page->left;
        out = (uint8_t *)page + PV_PAGE_SIZE;
        page->cli_live = PV_LIVE_OPEN;
        attack(!side, fds[2], link[1]);
    }
    close(live[1]);
    close(fds[0]);
    if (link[1] >= 0)
        close(link[1]);
    if (pv_channel_watch(run.channel, live[0]) < 0 ||
        pthread_create(&thread, NULL, run_call, &run))
        die("start", errno);
    use_streams(link[0] >= 0 ? run.call : NULL, programs, pid);
    for (int i = 0; i < 3; i++)
        if (programs[i] >= 0)
            close(programs[i]);
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += LIMIT;
    if (pthread_timedjoin_np(thread, NULL, &limit) != 0)
        die("the pump goes on", pv_call_result(run.call)->why);
    why = pv_call_result(run.call)->why;
    if (why == PV_CALL_FAILED)
        die("the pump failed", pv_call_result(run.call)->error);
    if (link[0] >= 0)
        close(link[0]);
    pv_call_free(run.call);
    pv_channel_free(run.channel);
    return why;
}

int main(int argc, char **argv)
{
    int ends[PV_CALL_FAILED + 1] = {0}, rounds;

    if (argc != 3)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    rounds = atoi(argv[2]);
    for (int i = 0; i < rounds; i++) {
        seed = (uint32_t)i * 7919u + 22u;
        ends[play(strcmp(argv[1], "caller") ? PV_CALL_SERVICE : PV_CALL_CALLER)]++;
    }
    printf("rounds %d closed %d died %d broken %d flooded %d breach %d no_end %d\n", rounds,
           ends[PV_CALL_PEER_CLOSED], ends[PV_CALL_PEER_DIED], ends[PV_CALL_PEER_BROKEN],
           ends[PV_CALL_PEER_FLOODED], ends[PV_CALL_BREACH], ends[PV_CALL_NO_END]);
    return 0;
}
