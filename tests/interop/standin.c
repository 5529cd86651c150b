/*
 * See standin.h. Semantics follow Xen's public headers (xengnttab.h, xenevtchn.h, xenstore.h) and
 * what Linux's gntalloc, gntdev and evtchn drivers do, as far as libxenvchan can tell:
 *
 *  - a grant is a page of a memfd, and each side has a mapping of its own;
 *  - an unmap notification clears its byte and sends its event;
 *  - an event that is sent before a thread waits stays pending; binding makes one pending at once;
 *  - an event to a closed port vanishes; what belongs to a handle goes with it;
 *  - grants and nodes are for the one domain that they were given to.
 *
 * Simpler than the real thing: one port a handle, transactions write through, no quotas but the
 * tables' sizes. Two domains hold one channel at a time here, so the tables are small.
 */
#include "standin.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>

#define PAGE 4096u
#define REGIONS 16u
#define GRANTS 1024u /* gntalloc's default limit for a domain */
#define PORTS 8u
#define NODES 64u
#define NODE_TEXT 64u

struct xengntdev_handle { /* both halves of libxengnttab use this name */
    unsigned domain;
    /* The one page of this handle with an unmap notification. */
    uint8_t *notify_page;
    uint32_t notify_offset, notify_port;
};

struct xenevtchn_handle {
    unsigned domain, port; /* port 0: none yet */
    int fd;
};

struct xs_handle {
    unsigned domain;
};

struct region { /* pages that were shared by one call; free when owner is NULL */
    const xengntshr_handle *owner;
    unsigned first, count, from, to;
    uint8_t *address;
    int memfd;
};

struct port { /* number is index + 1; free when owner is NULL */
    const xenevtchn_handle *owner;
    unsigned remote_domain, remote_port;
};

struct node { /* free when path is empty */
    char path[NODE_TEXT], value[NODE_TEXT];
    unsigned owner, reader;
};

_Thread_local unsigned standin_domain;
int standin_patience = 1000;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over the tables below */
static struct region regions[REGIONS];
static struct port ports[PORTS];
static struct node nodes[NODES];
static unsigned next_grant = 8; /* Xen keeps the first eight to itself */
static int64_t longest;
static int slept_on = -1; /* what the last thread to go to sleep waits for; -1: it is up again */

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

int standin_wait(int fd)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    int64_t start = now(), took, before;
    int ready;

    __atomic_store_n(&slept_on, fd, __ATOMIC_SEQ_CST);
    do
        ready = poll(&waiting, 1, standin_patience);
    while (ready < 0 && errno == EINTR);
    __atomic_store_n(&slept_on, -1, __ATOMIC_SEQ_CST);
    took = now() - start;
    before = __atomic_load_n(&longest, __ATOMIC_RELAXED);
    while (took > before && !__atomic_compare_exchange_n(&longest, &before, took, 0,
                                                         __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    if (ready > 0)
        return 0;
    errno = ETIME;
    return -1;
}

int standin_asleep(void)
{
    struct pollfd event = {.fd = __atomic_load_n(&slept_on, __ATOMIC_SEQ_CST), .events = POLLIN};

    return event.fd >= 0 && poll(&event, 1, 0) == 0;
}

int64_t standin_longest_wait(void)
{
    return __atomic_load_n(&longest, __ATOMIC_RELAXED);
}

unsigned standin_in_use(void)
{
    unsigned used = 0;

    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < REGIONS; i++)
        used += regions[i].owner ? regions[i].count : 0;
    for (unsigned i = 0; i < PORTS; i++)
        used += ports[i].owner != NULL;
    for (unsigned i = 0; i < NODES; i++)
        used += nodes[i].path[0] != 0;
    pthread_mutex_unlock(&lock);
    return used;
}

/* ---- event channels ---- */

/* Xen needs no descriptor of the other domain. A thread with a table of its own (own_files.h) has
 * none here. */
static int borrow(const xenevtchn_handle *handle)
{
    int process = (int)syscall(SYS_pidfd_open, getpid(), 0);
    int fd = process < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, process, handle->fd, 0);

    close(process);
    return fd;
}

static void make_pending(const xenevtchn_handle *handle)
{
    const uint64_t one = 1;
    ssize_t ignored = write(handle->fd, &one, sizeof one);

    if (ignored < 0 && errno == EBADF) {
        int fd = borrow(handle);

        ignored = write(fd, &one, sizeof one);
        close(fd);
    }
    (void)ignored;
}

/* With the lock held. */
static int send_event(unsigned number)
{
    const struct port *port = &ports[number - 1];

    if (number < 1 || number > PORTS || !port->owner) {
        errno = EINVAL;
        return -1;
    }
    if (port->remote_port && ports[port->remote_port - 1].owner)
        make_pending(ports[port->remote_port - 1].owner);
    return 0;
}

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned flags)
{
    xenevtchn_handle *handle = calloc(1, sizeof *handle);

    (void)logger, (void)flags;
    if (!handle)
        return NULL;
    handle->domain = standin_domain;
    handle->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return handle;
}

static xenevtchn_port_or_error_t bind_port(xenevtchn_handle *handle, uint32_t remote_domain)
{
    for (unsigned i = 0; i < PORTS; i++)
        if (!ports[i].owner && !handle->port) {
            ports[i] = (struct port){.owner = handle, .remote_domain = remote_domain};
            handle->port = i + 1;
            return (xenevtchn_port_or_error_t)handle->port;
        }
    errno = ENOSPC;
    return -1;
}

xenevtchn_port_or_error_t xenevtchn_bind_unbound_port(xenevtchn_handle *handle, uint32_t domid)
{
    xenevtchn_port_or_error_t result;

    pthread_mutex_lock(&lock);
    result = bind_port(handle, domid);
    pthread_mutex_unlock(&lock);
    return result;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *handle, uint32_t domid,
                                                     evtchn_port_t remote_port)
{
    xenevtchn_port_or_error_t result = -1;
    struct port *remote;

    pthread_mutex_lock(&lock);
    remote = remote_port >= 1 && remote_port <= PORTS ? &ports[remote_port - 1] : NULL;
    if (!remote || !remote->owner || remote->remote_port || remote->owner->domain != domid ||
        remote->remote_domain != handle->domain)
        errno = EINVAL;
    else
        result = bind_port(handle, domid);
    if (result > 0) {
        ports[result - 1].remote_port = remote_port;
        remote->remote_port = (unsigned)result;
        make_pending(handle); /* Xen does: events may have been missed before */
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static int release_port(xenevtchn_handle *handle, unsigned number)
{
    if (number < 1 || number > PORTS || ports[number - 1].owner != handle) {
        errno = EINVAL;
        return -1;
    }
    if (ports[number - 1].remote_port)
        ports[ports[number - 1].remote_port - 1].remote_port = 0;
    ports[number - 1].owner = NULL;
    handle->port = 0;
    return 0;
}

int xenevtchn_unbind(xenevtchn_handle *handle, evtchn_port_t port)
{
    int result;

    pthread_mutex_lock(&lock);
    result = release_port(handle, port);
    pthread_mutex_unlock(&lock);
    return result;
}

int xenevtchn_close(xenevtchn_handle *handle)
{
    if (!handle)
        return 0;
    pthread_mutex_lock(&lock);
    if (handle->port)
        release_port(handle, handle->port);
    pthread_mutex_unlock(&lock);
    close(handle->fd);
    free(handle);
    return 0;
}

int xenevtchn_fd(xenevtchn_handle *handle)
{
    return handle->fd;
}

int xenevtchn_notify(xenevtchn_handle *handle, evtchn_port_t port)
{
    int result;

    (void)handle;
    pthread_mutex_lock(&lock);
    result = send_event(port);
    pthread_mutex_unlock(&lock);
    return result;
}

/* Blocks until the port is pending, as read(2) on /dev/xen/evtchn does. */
xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *handle)
{
    uint64_t count;

    do {
        if (standin_wait(handle->fd) < 0)
            return -1;
    } while (read(handle->fd, &count, sizeof count) < 0);
    return (xenevtchn_port_or_error_t)handle->port;
}

/* Between pending and unmask the real port is masked; an eventfd keeps what comes meanwhile, too. */
int xenevtchn_unmask(xenevtchn_handle *handle, evtchn_port_t port)
{
    (void)handle, (void)port;
    return 0;
}

/* ---- grants: the side that shares ---- */

xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned flags)
{
    xengntshr_handle *handle = calloc(1, sizeof *handle);

    (void)logger, (void)flags;
    if (handle)
        handle->domain = standin_domain;
    return handle;
}

/* With the lock held. */
static struct region *new_region(unsigned count)
{
    struct region *found = NULL;
    unsigned used = 0;

    for (unsigned i = 0; i < REGIONS; i++) {
        if (regions[i].owner)
            used += regions[i].count;
        else
            found = &regions[i];
    }
    if (found && used + count <= GRANTS)
        return found;
    errno = ENOSPC;
    return NULL;
}

void *xengntshr_share_pages(xengntshr_handle *handle, uint32_t domid, int count, uint32_t *refs,
                            int writable)
{
    size_t length = (size_t)count * PAGE;
    int memfd = memfd_create("grant", MFD_CLOEXEC);
    void *address = MAP_FAILED;
    struct region *region = NULL;

    (void)writable; /* libxenvchan's always are */
    if (memfd >= 0 && ftruncate(memfd, (off_t)length) == 0)
        address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    pthread_mutex_lock(&lock);
    if (address != MAP_FAILED)
        region = new_region((unsigned)count);
    if (region) {
        *region = (struct region){.owner = handle,
                                  .first = next_grant,
                                  .count = (unsigned)count,
                                  .from = handle->domain,
                                  .to = domid,
                                  .address = address,
                                  .memfd = memfd};
        for (int i = 0; i < count; i++)
            refs[i] = next_grant++;
    }
    pthread_mutex_unlock(&lock);
    if (region)
        return address;
    if (address != MAP_FAILED)
        munmap(address, length);
    if (memfd >= 0)
        close(memfd);
    return NULL;
}

void *xengntshr_share_page_notify(xengntshr_handle *handle, uint32_t domid, uint32_t *ref,
                                  int writable, uint32_t notify_offset, evtchn_port_t notify_port)
{
    handle->notify_page = xengntshr_share_pages(handle, domid, 1, ref, writable);
    handle->notify_offset = notify_offset;
    handle->notify_port = notify_port;
    return handle->notify_page;
}

static void unmap_page(struct xengntdev_handle *handle, void *start, uint32_t count)
{
    if (start == handle->notify_page) {
        __atomic_store_n(handle->notify_page + handle->notify_offset, 0, __ATOMIC_RELEASE);
        pthread_mutex_lock(&lock);
        send_event(handle->notify_port);
        pthread_mutex_unlock(&lock);
        handle->notify_page = NULL;
    }
    munmap(start, (size_t)count * PAGE);
}

int xengntshr_unshare(xengntshr_handle *handle, void *start, uint32_t count)
{
    unmap_page(handle, start, count);
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < REGIONS; i++)
        if (regions[i].owner == handle && regions[i].address == start) {
            close(regions[i].memfd);
            regions[i].owner = NULL;
        }
    pthread_mutex_unlock(&lock);
    return 0;
}

int xengntshr_close(xengntshr_handle *handle)
{
    if (!handle)
        return 0;
    pthread_mutex_lock(&lock);
    /* libxenvchan takes its rings down with munmap(2); the driver frees such grants by itself. */
    for (unsigned i = 0; i < REGIONS; i++)
        if (regions[i].owner == handle) {
            close(regions[i].memfd);
            regions[i].owner = NULL;
        }
    pthread_mutex_unlock(&lock);
    free(handle);
    return 0;
}

/* ---- grants: the side that maps ---- */

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned flags)
{
    xengnttab_handle *handle = calloc(1, sizeof *handle);

    (void)logger, (void)flags;
    if (handle)
        handle->domain = standin_domain;
    return handle;
}

/* Maps the pages from refs[0] on that follow each other at address; returns how many, 0: refused. */
static uint32_t map_run(const xengnttab_handle *handle, uint32_t count, uint32_t domid,
                        const uint32_t *refs, int prot, uint8_t *address)
{
    for (unsigned i = 0; i < REGIONS; i++) {
        const struct region *region = &regions[i];
        uint32_t page = refs[0] - region->first, run = 1;

        if (!region->owner || page >= region->count)
            continue;
        if (region->from != domid || region->to != handle->domain)
            return 0;
        while (run < count && page + run < region->count && refs[run] == refs[0] + run)
            run++;
        if (mmap(address, (size_t)run * PAGE, prot, MAP_SHARED | MAP_FIXED, region->memfd,
                 (off_t)page * PAGE) == MAP_FAILED)
            return 0;
        return run;
    }
    return 0;
}

void *xengnttab_map_domain_grant_refs(xengnttab_handle *handle, uint32_t count, uint32_t domid,
                                      uint32_t *refs, int prot)
{
    size_t length = (size_t)count * PAGE;
    uint8_t *address = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t done = 0, run = 1;

    if (address == MAP_FAILED)
        return NULL;
    pthread_mutex_lock(&lock);
    for (; run && done < count; done += run)
        run = map_run(handle, count - done, domid, refs + done, prot,
                      address + (size_t)done * PAGE);
    pthread_mutex_unlock(&lock);
    if (done == count)
        return address;
    munmap(address, length);
    errno = EINVAL;
    return NULL;
}

void *xengnttab_map_grant_ref_notify(xengnttab_handle *handle, uint32_t domid, uint32_t ref,
                                     int prot, uint32_t notify_offset, evtchn_port_t notify_port)
{
    handle->notify_page = xengnttab_map_domain_grant_refs(handle, 1, domid, &ref, prot);
    handle->notify_offset = notify_offset;
    handle->notify_port = notify_port;
    return handle->notify_page;
}

int xengnttab_unmap(xengnttab_handle *handle, void *start, uint32_t count)
{
    unmap_page(handle, start, count);
    return 0;
}

int xengnttab_close(xengnttab_handle *handle)
{
    free(handle);
    return 0;
}

/* ---- xenstore ---- */

struct xs_handle *xs_open(unsigned long flags)
{
    struct xs_handle *handle = calloc(1, sizeof *handle);

    (void)flags;
    if (handle)
        handle->domain = standin_domain;
    return handle;
}

void xs_close(struct xs_handle *handle)
{
    free(handle);
}

xs_transaction_t xs_transaction_start(struct xs_handle *handle)
{
    (void)handle;
    return 1;
}

bool xs_transaction_end(struct xs_handle *handle, xs_transaction_t transaction, bool abort)
{
    (void)handle, (void)transaction, (void)abort;
    return true;
}

/* With the lock held. The node of that path; with an empty path: a free one. */
static struct node *find_node(const char *path)
{
    for (unsigned i = 0; i < NODES; i++)
        if (!strcmp(nodes[i].path, path))
            return &nodes[i];
    errno = path[0] ? ENOENT : ENOSPC;
    return NULL;
}

void *xs_read(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
              unsigned *length)
{
    char *value = NULL;
    const struct node *node;

    (void)transaction;
    pthread_mutex_lock(&lock);
    if (!strcmp(path, "domid")) {
        if (asprintf(&value, "%u", handle->domain) < 0)
            value = NULL;
    } else if ((node = find_node(path)) != NULL) {
        if (node->owner == handle->domain || node->reader == handle->domain)
            value = strdup(node->value);
        else
            errno = EACCES;
    }
    pthread_mutex_unlock(&lock);
    if (value && length)
        *length = (unsigned)strlen(value);
    return value;
}

bool xs_write(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
              const void *data, unsigned length)
{
    struct node *node;

    (void)transaction;
    if (strlen(path) >= NODE_TEXT || length >= NODE_TEXT) {
        errno = ENOSPC;
        return false;
    }
    pthread_mutex_lock(&lock);
    node = find_node(path);
    if (!node)
        node = find_node("");
    if (node) {
        *node = (struct node){.owner = handle->domain, .reader = handle->domain};
        strcpy(node->path, path);
        memcpy(node->value, data, length);
    }
    pthread_mutex_unlock(&lock);
    return node != NULL;
}

/* perms[0] names the owner, perms[1] the one other domain that may read. */
bool xs_set_permissions(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
                        struct xs_permissions *perms, unsigned count)
{
    struct node *node;

    (void)handle, (void)transaction;
    pthread_mutex_lock(&lock);
    node = find_node(path);
    if (node && count == 2 && (perms[1].perms & XS_PERM_READ))
        node->reader = perms[1].id;
    pthread_mutex_unlock(&lock);
    return node != NULL;
}

bool xs_rm(struct xs_handle *handle, xs_transaction_t transaction, const char *path)
{
    size_t length = strlen(path);

    (void)handle, (void)transaction;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < NODES; i++) /* a node and all below it */
        if (!strncmp(nodes[i].path, path, length) &&
            (nodes[i].path[length] == 0 || nodes[i].path[length] == '/'))
            nodes[i].path[0] = 0;
    pthread_mutex_unlock(&lock);
    return true;
}
