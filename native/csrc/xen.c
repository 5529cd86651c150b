#include "xen.h"
#include "xen_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void xen_notify(void *arg)
{
    const struct xen_channel *channel = arg;

    /* An error means that the event channel is gone; the guard finds out why. */
    xen.xenevtchn_notify(channel->vchan->event, channel->vchan->event_port);
}

static int xen_clear(struct pv_channel *channel)
{
    const struct xen_channel *own = (const struct xen_channel *)channel;
    int port = xen.xenevtchn_pending(own->vchan->event); /* EAGAIN: nothing was there */

    if (port >= 0)
        xen.xenevtchn_unmask(own->vchan->event, (uint32_t)port);
    return port >= 0;
}

/*
 * Removes from xenstore what is not needed any more. From 4.17 on the library would remove the
 * rendezvous when it closes. By then the nodes may be a successor's.
 */
static void leave_store(struct xen_channel *own)
{
    bool announces = own->path[0] != 0;
    void *store = announces || xen_has_presence(own->domain, own->peer) ? xen.xs_open(0) : NULL;

    if (store) {
        if (announces)
            xen.xs_rm(store, NO_TRANSACTION, own->path);
        xen_hide_presence(store, own->domain, own->peer);
        xen.xs_close(store);
    }
    if (announces && xen.has_path) {
        free(own->vchan->xs_path);
        own->vchan->xs_path = NULL;
    }
    own->path[0] = 0;
}

static void xen_detach(struct pv_channel *channel)
{
    struct xen_channel *own = (struct xen_channel *)channel;

    xen_unguard(own);
    leave_store(own);
    xen.libxenvchan_close(own->vchan);
    free(own);
}

static int path_of(char path[PATH_SIZE], unsigned server, unsigned client, unsigned port)
{
    int length = snprintf(path, PATH_SIZE, "/local/domain/%u/data/vchan/%u/%u", server, client, port);

    return length < PATH_SIZE ? 0 : -EINVAL;
}

/* Takes over what one of the library's two init calls made. */
static int attach(struct libxenvchan *vchan, unsigned domain, unsigned peer, unsigned left_order,
                  unsigned right_order, struct pv_channel **channel)
{
    struct libxenvchan_ring *left = vchan->is_server ? &vchan->read : &vchan->write;
    struct libxenvchan_ring *right = vchan->is_server ? &vchan->write : &vchan->read;
    struct xen_channel *own = calloc(1, sizeof *own);
    int fd = xen.xenevtchn_fd(vchan->event), error = 0;
    int flags = fcntl(fd, F_GETFL);

    /* A wake-up that another thread has consumed must not block us. */
    if (!own || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        error = own ? -errno : -ENOMEM;
    if (error) {
        free(own);
        return error;
    }
    own->vchan = vchan;
    own->domain = domain;
    own->peer = peer;
    own->guard_fd = -1;
    own->channel.event_fd = fd;
    own->channel.live_fd = -1;
    own->channel.wait_fd = -1;
    own->channel.notify_fd = -1;
    own->channel.apart = 1;
    own->channel.poll.mode = PV_POLL_SPIN;
    own->channel.poll.budget_ns = PV_POLL_DOMAIN_NS;
    own->channel.clear = xen_clear;
    own->channel.detach = xen_detach;
    vchan->server_persist = 0;
    vchan->blocking = 0; /* init leaves it as malloc() did; no call of ours reads it */
    pv_ring_attach(&own->channel.ring, vchan->page, left_order, right_order, left->buffer,
                   right->buffer, vchan->is_server != 0, xen_notify, own);
    *channel = &own->channel;
    return 0;
}

static uint32_t pages_of(unsigned order)
{
    return order < PV_ORDER_PAGES ? 0 : 1u << (order - PV_ORDER_PAGES);
}

/*
 * Whether server_init would find what it needs. When it does not, it passes uninitialised pointers
 * to munmap() and free(), which may crash us: so everything is tried before, and freed.
 */
static int rehearse(unsigned peer, uint32_t pages)
{
    void *event = xen.xenevtchn_open(NULL, 0), *grants = NULL, *shared = NULL;
    uint32_t *references = calloc(pages, sizeof *references);
    int error = 0;

    if (!references)
        error = -ENOMEM;
    else if (!event || xen.xenevtchn_bind_unbound_port(event, peer) < 0)
        error = -errno;
    else if ((grants = xen.xengntshr_open(NULL, 0)) == NULL)
        error = -errno;
    else if ((shared = xen.xengntshr_share_pages(grants, peer, (int)pages, references, 1)) == NULL)
        error = -errno;
    if (shared)
        xen.xengntshr_unshare(grants, shared, pages);
    if (grants)
        xen.xengntshr_close(grants);
    if (event)
        xen.xenevtchn_close(event);
    free(references);
    return error == -ENOENT || error == -ENXIO ? -ENODEV : error;
}

int pv_xen_serve(unsigned domain, unsigned peer, unsigned port, unsigned left_order,
                 unsigned right_order, struct pv_channel **channel)
{
    struct libxenvchan *vchan;
    char path[PATH_SIZE];
    void *store;
    int error = pv_xen_load(NULL);

    if (!error)
        error = path_of(path, domain, peer, port);
    if (!error && (domain == peer || !pv_orders_valid(left_order, right_order)))
        error = -EINVAL; /* a channel from a domain to itself is an oops of the kernel */
    if (!error)
        error = rehearse(peer, 1 + pages_of(left_order) + pages_of(right_order));
    if (error)
        return error;
    store = xen.xs_open(0);
    if (!store)
        return -EIO;
    /* References of a dead server name other pages by now. */
    xen.xs_rm(store, NO_TRANSACTION, path);
    errno = EIO;
    vchan = xen.libxenvchan_server_init(NULL, (int)peer, path, (size_t)1 << left_order,
                                        (size_t)1 << right_order);
    if (!vchan)
        error = errno && errno != ENOENT ? -errno : -EIO;
    else
        error = xen_show_presence(store, domain, peer);
    if (!error)
        error = attach(vchan, domain, peer, (unsigned)vchan->read.order,
                       (unsigned)vchan->write.order, channel);
    if (!error) {
        strcpy(((struct xen_channel *)*channel)->path, path);
    } else {
        if (vchan)
            xen.libxenvchan_close(vchan);
        xen.xs_rm(store, NO_TRANSACTION, path);
        xen_hide_presence(store, domain, peer);
    }
    xen.xs_close(store);
    return error;
}

void pv_xen_admit(struct pv_channel *channel)
{
    struct xen_channel *own = (struct xen_channel *)channel;
    void *store = own->peer != 0 ? xen.xs_open(0) : NULL; /* dom0 does not die */

    /* Now, while it exists: the guard may look only after its death. */
    if (store) {
        own->peer_seen = xen_see_presence(store, NO_TRANSACTION, own->domain, own->peer) == THERE;
        xen.xs_close(store);
    }
    leave_store(own);
}

/*
 * Whether the path announces a server, which may then know of us; 0, -ENOENT, or -errno. *is_shown:
 * whether it is one of ours, which announces its presence.
 */
static int look_up(const char *path, unsigned domain, unsigned peer, bool *is_shown)
{
    char node[PATH_SIZE + sizeof "/event-channel"];
    void *store = xen.xs_open(0), *value;
    int error = 0;

    if (!store)
        return errno == ENOENT ? -ENODEV : -errno;
    snprintf(node, sizeof node, "%s/event-channel", path);
    value = xen.xs_read(store, NO_TRANSACTION, node, NULL);
    if (!value) /* EACCES: of a server for another domain, which is none of our business */
        error = errno == EACCES ? -ENOENT : -errno;
    else
        error = xen_show_presence(store, domain, peer);
    if (!error && peer != 0)
        *is_shown = xen_see_presence(store, NO_TRANSACTION, domain, peer) == THERE;
    free(value);
    xen.xs_close(store);
    return error;
}

/*
 * Whether a client was there before us. If it leaves before the server has removed the rendezvous,
 * Xen lets the next one join, and a ring serves one client only.
 */
static bool is_used(const struct vchan_interface *page)
{
    return __atomic_load_n(&page->left.prod, __ATOMIC_ACQUIRE) != 0 ||
           __atomic_load_n(&page->right.cons, __ATOMIC_ACQUIRE) != 0;
}

/* After an attempt to reach a server that has ended meanwhile. */
static void hide(unsigned domain, unsigned peer)
{
    void *store = xen_has_presence(domain, peer) ? xen.xs_open(0) : NULL;

    if (store) {
        xen_hide_presence(store, domain, peer);
        xen.xs_close(store);
    }
}

int pv_xen_join(unsigned domain, unsigned peer, unsigned port, struct pv_channel **channel)
{
    struct libxenvchan *vchan;
    unsigned left_order, right_order;
    char path[PATH_SIZE];
    bool is_shown = false;
    int error = pv_xen_load(NULL);

    if (!error)
        error = path_of(path, peer, domain, port);
    if (!error && domain == peer)
        error = -EINVAL;
    if (!error)
        error = look_up(path, domain, peer, &is_shown);
    if (error)
        return error;
    errno = ECONNREFUSED;
    vchan = xen.libxenvchan_client_init(NULL, (int)peer, path);
    if (!vchan) {
        error = errno == EACCES || errno == ENODEV ? -errno : -ECONNREFUSED;
    } else {
        /* The library's own copies: it has read the page once, and has mapped what it read. */
        left_order = (unsigned)vchan->write.order;
        right_order = (unsigned)vchan->read.order;
        if (!pv_orders_valid(left_order, right_order))
            error = -EPROTO;
        else if (is_used(vchan->page))
            error = -ECONNREFUSED;
        else
            error = attach(vchan, domain, peer, left_order, right_order, channel);
        if (error)
            xen.libxenvchan_close(vchan);
    }
    if (error)
        hide(domain, peer);
    else
        ((struct xen_channel *)*channel)->peer_seen = is_shown;
    return error;
}
