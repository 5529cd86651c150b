/* closer.h describes this. */
#include "closer.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../csrc/own_thread.h"

/* Bytes of a thread's stack: it calls close(2), and nothing else that is deep. */
#define STACK (64u * 1024u)

/* What was given at once. */
struct batch {
    struct batch *next;
    struct pc_owner *owner;
    unsigned count;
    int fds[];
};

struct line {
    struct batch *first, *last;
    bool has_thread;
    pthread_cond_t changed;
    unsigned idle_ms;
};

struct pc_owner {
    struct line line;
    bool has_line;  /* it counts as one of the lines */
    unsigned users; /* its holder, what it has given, and its thread */
    unsigned open;
};

/* Everything here and of the owners is looked at with the lock held, but for what is `open`. */
static struct {
    pthread_mutex_t lock;
    pthread_once_t once;
    pthread_condattr_t clock;
    struct pc_owner shared; /* its line */
    unsigned lines, open;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void begin(struct pc_owner *owner)
{
    owner->users = 1;
    pthread_cond_init(&owner->line.changed, &all.clock);
}

static void prepare(void)
{
    pthread_condattr_init(&all.clock);
    pthread_condattr_setclock(&all.clock, CLOCK_MONOTONIC);
    begin(&all.shared);
}

static void leave(struct pc_owner *owner)
{
    if (--owner->users)
        return;
    pthread_cond_destroy(&owner->line.changed);
    free(owner);
}

/* Waits for something to close; false if nothing has come for too long. */
static bool await(struct line *line)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += line->idle_ms / 1000;
    until.tv_nsec += line->idle_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    while (!line->first)
        if (pthread_cond_timedwait(&line->changed, &all.lock, &until) == ETIMEDOUT)
            return line->first;
    return true;
}

static void *work(void *arg)
{
    struct pc_owner *mine = arg;
    struct line *line = &mine->line;

    pthread_mutex_lock(&all.lock);
    while (await(line)) {
        struct batch *batch = line->first;

        line->first = batch->next;
        pthread_mutex_unlock(&all.lock);
        for (unsigned i = 0; i < batch->count; i++) {
            close(batch->fds[i]); /* closed even if it fails (close(2)) */
            __atomic_sub_fetch(&batch->owner->open, 1, __ATOMIC_RELAXED);
            __atomic_sub_fetch(&all.open, 1, __ATOMIC_RELAXED);
        }
        pthread_mutex_lock(&all.lock);
        leave(batch->owner);
        free(batch);
    }
    line->has_thread = false;
    if (mine->has_line) {
        mine->has_line = false;
        all.lines--;
    }
    leave(mine);
    pthread_mutex_unlock(&all.lock);
    return NULL;
}

/* Whose line a descriptor of this owner comes into. */
static struct pc_owner *line_for(struct pc_owner *owner, unsigned lines_max)
{
    if (!owner->has_line) {
        if (all.lines >= lines_max)
            return &all.shared;
        owner->has_line = true;
        all.lines++;
    }
    return owner;
}

int pc_close(struct pc_owner *owner, const int *fds, unsigned count, unsigned lines_max,
             unsigned idle_ms)
{
    struct batch *batch = malloc(sizeof *batch + count * sizeof *fds);
    struct pc_owner *whose;
    struct line *line;

    if (!batch)
        return -ENOMEM;
    *batch = (struct batch){.owner = owner, .count = count};
    memcpy(batch->fds, fds, count * sizeof *fds);
    __atomic_add_fetch(&owner->open, count, __ATOMIC_RELAXED);
    __atomic_add_fetch(&all.open, count, __ATOMIC_RELAXED);
    pthread_mutex_lock(&all.lock);
    owner->users++;
    whose = line_for(owner, lines_max);
    line = &whose->line;
    line->idle_ms = idle_ms;
    if (line->first)
        line->last->next = batch;
    else
        line->first = batch;
    line->last = batch;
    if (line->has_thread) {
        pthread_cond_signal(&line->changed);
    } else {
        whose->users++;
        line->has_thread = !pv_own_thread(work, whose, STACK);
        whose->users -= !line->has_thread;
    }
    pthread_mutex_unlock(&all.lock);
    return 0;
}

struct pc_owner *pc_owner_new(void)
{
    struct pc_owner *owner = calloc(1, sizeof *owner);

    pthread_once(&all.once, prepare);
    if (owner)
        begin(owner);
    return owner;
}

void pc_owner_free(struct pc_owner *owner)
{
    pthread_mutex_lock(&all.lock);
    leave(owner);
    pthread_mutex_unlock(&all.lock);
}

unsigned pc_owner_open(const struct pc_owner *owner)
{
    return __atomic_load_n(&owner->open, __ATOMIC_RELAXED);
}

unsigned pc_open(void)
{
    return __atomic_load_n(&all.open, __ATOMIC_RELAXED);
}
