#include "shm.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Against shrinking, because touching a page that is gone kills the process (SIGBUS); against
 * growing and against further seals, so that a checked value stays valid.
 */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct shm_channel {
    struct pv_channel channel; /* first: a pointer to one is a pointer to the other */
    void *base;
    size_t length;
};

static void shm_notify(void *arg)
{
    const struct shm_channel *shm = arg;
    const uint64_t one = 1;
    ssize_t ignored = write(shm->channel.notify_fd, &one, sizeof one);

    /* EAGAIN: the counter is full, so the peer's descriptor is readable already. */
    (void)ignored;
}

static int shm_clear(struct pv_channel *channel)
{
    uint64_t count;

    /* EAGAIN: another thread took it; the caller looks at the ring anyway */
    return read(channel->event_fd, &count, sizeof count) == sizeof count;
}

static void shm_detach(struct pv_channel *channel)
{
    struct shm_channel *shm = (struct shm_channel *)channel;

    munmap(shm->base, shm->length);
    close(channel->event_fd);
    close(channel->notify_fd);
    free(shm);
}

/* On the only processor that we may use, polling cannot succeed. The affinity is not expected to
 * change. */
static uint8_t poll_mode_here(void)
{
    cpu_set_t allowed;
    int is_one = sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) == 1;

    return is_one ? PV_POLL_YIELD : PV_POLL_SPIN;
}

/* Maps and attaches; orders are valid and fit length. Owns the two event descriptors from here. */
static int attach(size_t length, unsigned left_order, unsigned right_order, void *base,
                  int is_server, int event_fd, int notify_fd, struct pv_channel **channel)
{
    struct shm_channel *shm = calloc(1, sizeof *shm);
    size_t left_bytes = left_order < PV_ORDER_PAGES ? 0 : (size_t)1 << left_order;
    uint8_t *rings = (uint8_t *)base + PV_PAGE_SIZE;

    if (!shm)
        return -ENOMEM;
    shm->base = base;
    shm->length = length;
    shm->channel.event_fd = event_fd;
    shm->channel.notify_fd = notify_fd;
    shm->channel.live_fd = -1;
    shm->channel.wait_fd = -1;
    shm->channel.poll.mode = poll_mode_here();
    shm->channel.poll.budget_ns = PV_POLL_NS;
    shm->channel.clear = shm_clear;
    shm->channel.detach = shm_detach;
    pv_ring_attach(&shm->channel.ring, base, left_order, right_order, rings, rings + left_bytes,
                   is_server, shm_notify, shm);
    *channel = &shm->channel;
    return 0;
}

int pv_shm_create(unsigned left_order, unsigned right_order, struct pv_channel **channel,
                  int descriptors[3])
{
    size_t length = pv_layout_size(left_order, right_order);
    int memfd, ours = -1, theirs = -1, error;
    void *base = MAP_FAILED;

    if (!pv_orders_valid(left_order, right_order))
        return -EINVAL;
    memfd = memfd_create("vchan", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0)
        return -errno;
    if (ftruncate(memfd, (off_t)length) < 0 || fcntl(memfd, F_ADD_SEALS, SEALS) < 0)
        goto failed;
    base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (base == MAP_FAILED)
        goto failed;
    ours = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    theirs = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ours < 0 || theirs < 0)
        goto failed;
    pv_page_init(base, left_order, right_order);
    error = attach(length, left_order, right_order, base, 1, ours, theirs, channel);
    errno = -error;
    if (error < 0)
        goto failed;
    descriptors[0] = memfd;
    descriptors[1] = theirs;
    descriptors[2] = ours;
    return 0;

failed:
    error = -errno;
    if (base != MAP_FAILED)
        munmap(base, length);
    if (ours >= 0)
        close(ours);
    if (theirs >= 0)
        close(theirs);
    close(memfd);
    return error;
}

static int is_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && (flags & O_NONBLOCK);
}

int pv_shm_join(int memfd, int event_fd, int notify_fd, struct pv_channel **channel)
{
    struct stat status;
    const struct vchan_interface *page;
    unsigned left_order, right_order;
    size_t length;
    void *base;
    int seals = fcntl(memfd, F_GET_SEALS); /* fails for anything but a memfd */
    int error;

    if (seals < 0 || (seals & SEALS) != SEALS)
        return -EPROTO;
    /* The size can no longer change, so this measurement holds for ever. */
    if (fstat(memfd, &status) < 0)
        return -errno;
    if (status.st_size < (off_t)PV_PAGE_SIZE ||
        status.st_size > (off_t)pv_layout_size(PV_ORDER_MAX, PV_ORDER_MAX))
        return -EPROTO;
    if (!is_nonblocking(event_fd) || !is_nonblocking(notify_fd))
        return -EPROTO; /* a notification must never block */
    length = (size_t)status.st_size;
    base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (base == MAP_FAILED)
        return errno == EPERM ? -EPROTO : -errno; /* EPERM: sealed against writing */
    page = base;
    /* Read once each; from here on only these copies are used. */
    left_order = __atomic_load_n(&page->left_order, __ATOMIC_ACQUIRE);
    right_order = __atomic_load_n(&page->right_order, __ATOMIC_ACQUIRE);
    if (!pv_orders_valid(left_order, right_order) ||
        pv_layout_size(left_order, right_order) != length)
        error = -EPROTO;
    else
        error = attach(length, left_order, right_order, base, 0, event_fd, notify_fd,
                       channel);
    if (error < 0)
        munmap(base, length);
    return error;
}
