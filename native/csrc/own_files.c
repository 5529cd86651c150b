#include "own_files.h"
#include "own_thread.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of <linux/close_range.h>. */
#define UNSHARE (1u << 1)

/* The first number that is no standard stream's. */
#define FIRST 3

/* By their numbers: a sanitizer takes a number for the same descriptor in all threads, and would
 * call these two a race with who uses it elsewhere. */
static int put_at(int fd, int number)
{
    return (int)syscall(SYS_dup3, fd, number, O_CLOEXEC);
}

static void drop(int fd)
{
    syscall(SYS_close, fd);
}

struct run {
    const int *fds;
    unsigned count;
    void (*work)(void *);
    void *arg;
    int ours, theirs; /* a pair of sockets; the thread sends the first of `fds` back by `theirs` */
    sem_t is_decided; /* the thread has its table, or an error */
    sem_t is_alone;   /* the others have the first of `fds` no more */
    int error;
};

/* The lowest of those that are at least `from`, and of the thread's socket; -1: none. */
static int next_of(const struct run *run, int from)
{
    int next = run->theirs >= from ? run->theirs : -1;

    for (unsigned i = 0; i < run->count; i++)
        if (run->fds[i] >= from && (next < 0 || run->fds[i] < next))
            next = run->fds[i];
    return next;
}

static int above_all(const struct run *run)
{
    int highest = run->theirs;

    for (unsigned i = 0; i < run->count; i++)
        if (run->fds[i] > highest)
            highest = run->fds[i];
    return highest + 1;
}

/* A process's number stands for its first thread: that one has the table of all. 0 or -errno. */
static int take(int process, int fd)
{
    int found = (int)syscall(SYS_pidfd_getfd, process, fd, 0); /* with FD_CLOEXEC */
    int error = 0;

    if (found < 0)
        return -errno;
    if (found == fd)
        return 0;
    /* The lowest free number, so it is below this one, which is free as well. */
    if (put_at(found, fd) < 0)
        error = -errno;
    drop(found);
    return error;
}

/* Into a table that has only the standard streams. 0 or -errno. */
static int take_all(const struct run *run)
{
    int opened = (int)syscall(SYS_pidfd_open, getpid(), 0), process, error = 0;

    if (opened < 0)
        return -errno;
    process = (int)syscall(SYS_fcntl, opened, F_DUPFD_CLOEXEC, above_all(run)); /* out of the way */
    if (process < 0)
        return -errno;
    drop(opened);
    /* In order: what is lower is there already, and so none of these is the lowest free number. */
    for (int fd = FIRST; !error && (fd = next_of(run, fd)) >= 0; fd++)
        error = take(process, fd);
    drop(process);
    return error;
}

static void drop_all(void)
{
    syscall(SYS_close_range, 0, UINT_MAX, 0);
}

/*
 * Gives this thread a table of its own. Linux copies the first 64 numbers all the same and closes
 * them at once; all others are not in it for a moment, which would put off what somebody's close(2)
 * waits for. 0 or -errno: then it can only end.
 */
static int leave(const struct run *run)
{
    int error;

    if (syscall(SYS_close_range, FIRST, UINT_MAX, UNSHARE) < 0)
        return -errno;
    error = take_all(run);
    if (error)
        drop_all();
    return error;
}

/* What carries one descriptor from table to table. */
struct parcel {
    struct iovec part;
    struct msghdr message;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } passed;
    char byte;
};

static struct msghdr *wrap(struct parcel *parcel)
{
    *parcel = (struct parcel){.part = {&parcel->byte, 1}};
    parcel->message = (struct msghdr){
        .msg_iov = &parcel->part,
        .msg_iovlen = 1,
        .msg_control = &parcel->passed,
        .msg_controllen = sizeof parcel->passed,
    };
    return &parcel->message;
}

static void send_back(const struct run *run)
{
    struct parcel parcel;
    struct msghdr *message = wrap(&parcel);
    ssize_t ignored;

    parcel.passed.header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&parcel.passed.header), &run->fds[0], sizeof(int));
    ignored = sendmsg(run->theirs, message, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)ignored; /* then it is closed, as if the process were over */
}

/* It gets its number again. */
static void take_back(const struct run *run)
{
    struct parcel parcel;
    int fd;

    if (recvmsg(run->ours, wrap(&parcel), MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1 ||
        parcel.message.msg_controllen < CMSG_LEN(sizeof fd))
        return;
    memcpy(&fd, CMSG_DATA(&parcel.passed.header), sizeof fd);
    put_at(fd, run->fds[0]);
    drop(fd);
}

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) < 0)
        ; /* EINTR */
}

static void *work_alone(void *arg)
{
    struct run *run = arg;
    const int error = leave(run);

    run->error = error;
    sem_post(&run->is_decided);
    if (!error) {
        wait_for(&run->is_alone);
        run->work(run->arg);
        send_back(run);
        drop_all(); /* who waits for a thread's end hears of it before its table is closed */
    }
    return NULL;
}

int pv_own_files_run(const int *fds, unsigned count, void (*work)(void *), void *arg)
{
    struct run run = {.fds = fds, .count = count, .work = work, .arg = arg};
    pthread_t thread;
    int pair[2], error;

    if (fds[0] < FIRST)
        return -EINVAL; /* every table has it */
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    run.ours = pair[0];
    run.theirs = pair[1];
    sem_init(&run.is_decided, 0, 0);
    sem_init(&run.is_alone, 0, 0);
    error = pv_quiet_thread(&thread, NULL, work_alone, &run);
    if (!error) {
        wait_for(&run.is_decided);
        error = run.error;
        if (!error)
            put_at(run.ours, fds[0]); /* a placeholder, so that nobody gets the number */
        sem_post(&run.is_alone);
        pthread_join(thread, NULL);
        if (!error)
            take_back(&run);
    }
    sem_destroy(&run.is_decided);
    sem_destroy(&run.is_alone);
    close(run.ours);
    close(run.theirs);
    return error;
}
