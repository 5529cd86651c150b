#include "attach.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>

#define NODE_TEXT 128

struct xen_channel {
    struct pv_channel channel; /* first: a pointer to one is a pointer to the other */
    xengntshr_handle *share;   /* the server's */
    xengnttab_handle *map;     /* the client's */
    xenevtchn_handle *event;
    evtchn_port_t port;
    struct vchan_interface *page;
    void *left, *right; /* NULL when they are inside the page */
    uint32_t left_pages, right_pages;
    char path[NODE_TEXT]; /* the server's, which removes it again */
};

static void xen_notify(void *arg)
{
    struct xen_channel *xen = arg;

    xenevtchn_notify(xen->event, xen->port);
}

static int xen_clear(struct pv_channel *channel)
{
    struct xen_channel *xen = (struct xen_channel *)channel;
    xenevtchn_port_or_error_t port = xenevtchn_pending(xen->event);

    if (port >= 0)
        xenevtchn_unmask(xen->event, (evtchn_port_t)port);
    return port >= 0;
}

static void xen_detach(struct pv_channel *channel)
{
    struct xen_channel *xen = (struct xen_channel *)channel;
    struct xs_handle *store;

    if (xen->share) {
        if (xen->left)
            xengntshr_unshare(xen->share, xen->left, xen->left_pages);
        if (xen->right)
            xengntshr_unshare(xen->share, xen->right, xen->right_pages);
        if (xen->page)
            xengntshr_unshare(xen->share, xen->page, 1);
        xengntshr_close(xen->share);
    }
    if (xen->map) {
        if (xen->left)
            xengnttab_unmap(xen->map, xen->left, xen->left_pages);
        if (xen->right)
            xengnttab_unmap(xen->map, xen->right, xen->right_pages);
        if (xen->page)
            xengnttab_unmap(xen->map, xen->page, 1);
        xengnttab_close(xen->map);
    }
    xenevtchn_close(xen->event);
    if (xen->path[0] && (store = xs_open(0)) != NULL) {
        xs_rm(store, XBT_NULL, xen->path);
        xs_close(store);
    }
    free(xen);
}

static struct xen_channel *new_channel(void)
{
    struct xen_channel *xen = calloc(1, sizeof *xen);

    if (!xen)
        return NULL;
    xen->channel.event_fd = xen->channel.live_fd = xen->channel.wait_fd = -1;
    xen->channel.clear = xen_clear;
    xen->channel.detach = xen_detach;
    return xen;
}

static struct pv_channel *give_up(struct xen_channel *xen)
{
    int error = errno;

    if (xen)
        xen_detach(&xen->channel);
    errno = error;
    return NULL;
}

static uint32_t pages_of(unsigned order)
{
    return order < PV_ORDER_PAGES ? 0 : 1u << (order - PV_ORDER_PAGES);
}

/* One node, which the client's domain may read. */
static int announce(unsigned owner, unsigned peer, const char *path, const char *name, unsigned value)
{
    struct xs_permissions may[2] = {{.id = owner, .perms = XS_PERM_NONE},
                                    {.id = peer, .perms = XS_PERM_READ}};
    struct xs_handle *store = xs_open(0);
    char node[NODE_TEXT + 16], text[16];
    int done;

    snprintf(node, sizeof node, "%s/%s", path, name);
    snprintf(text, sizeof text, "%u", value);
    done = store && xs_write(store, XBT_NULL, node, text, (unsigned)strlen(text)) &&
           xs_set_permissions(store, XBT_NULL, node, may, 2);
    xs_close(store);
    return done;
}

static int look_up(const char *path, const char *name, unsigned *value)
{
    struct xs_handle *store = xs_open(0);
    char node[NODE_TEXT + 16], *text = NULL;
    int done;

    snprintf(node, sizeof node, "%s/%s", path, name);
    if (store)
        text = xs_read(store, XBT_NULL, node, NULL);
    done = text && sscanf(text, "%u", value) == 1;
    free(text);
    xs_close(store);
    return done;
}

static unsigned own_domain(void)
{
    struct xs_handle *store = xs_open(0);
    char *text = store ? xs_read(store, XBT_NULL, "domid", NULL) : NULL;
    unsigned domain = text ? (unsigned)atoi(text) : 0;

    free(text);
    xs_close(store);
    return domain;
}

/* The last step of both sides. */
static struct pv_channel *go(struct xen_channel *xen, unsigned left, unsigned right, int is_server)
{
    xen->channel.event_fd = xenevtchn_fd(xen->event);
    if (pv_channel_watch(&xen->channel, -1) < 0)
        return give_up(xen);
    pv_ring_attach(&xen->channel.ring, xen->page, left, right, xen->left, xen->right, is_server,
                   xen_notify, xen);
    return &xen->channel;
}

struct pv_channel *attach_server(unsigned peer, const char *path, unsigned left_order,
                                 unsigned right_order)
{
    struct xen_channel *xen = new_channel();
    uint32_t reference;
    int port;

    if (!xen || !pv_orders_valid(left_order, right_order))
        return give_up(xen);
    xen->left_pages = pages_of(left_order);
    xen->right_pages = pages_of(right_order);
    xen->share = xengntshr_open(NULL, 0);
    xen->event = xenevtchn_open(NULL, 0);
    if (!xen->share || !xen->event)
        return give_up(xen);
    port = xenevtchn_bind_unbound_port(xen->event, peer);
    if (port < 0)
        return give_up(xen);
    xen->port = (evtchn_port_t)port;
    xen->page = xengntshr_share_page_notify(xen->share, peer, &reference, 1,
                                            offsetof(struct vchan_interface, srv_live), xen->port);
    if (!xen->page)
        return give_up(xen);
    pv_page_init(xen->page, left_order, right_order);
    if (xen->left_pages && !(xen->left = xengntshr_share_pages(
                                 xen->share, peer, (int)xen->left_pages, xen->page->grants, 1)))
        return give_up(xen);
    if (xen->right_pages &&
        !(xen->right = xengntshr_share_pages(xen->share, peer, (int)xen->right_pages,
                                             xen->page->grants + xen->left_pages, 1)))
        return give_up(xen);
    snprintf(xen->path, sizeof xen->path, "%s", path);
    if (!announce(own_domain(), peer, path, "ring-ref", reference) ||
        !announce(own_domain(), peer, path, "event-channel", xen->port))
        return give_up(xen);
    return go(xen, left_order, right_order, 1);
}

struct pv_channel *attach_client(unsigned peer, const char *path)
{
    struct xen_channel *xen = new_channel();
    unsigned reference, remote_port, left_order, right_order;
    uint32_t *grants;
    int port;

    if (!xen || !look_up(path, "ring-ref", &reference) ||
        !look_up(path, "event-channel", &remote_port))
        return give_up(xen);
    xen->map = xengnttab_open(NULL, 0);
    xen->event = xenevtchn_open(NULL, 0);
    if (!xen->map || !xen->event)
        return give_up(xen);
    port = xenevtchn_bind_interdomain(xen->event, peer, remote_port);
    if (port < 0)
        return give_up(xen);
    xen->port = (evtchn_port_t)port;
    xen->page = xengnttab_map_grant_ref_notify(xen->map, peer, reference, PROT_READ | PROT_WRITE,
                                               offsetof(struct vchan_interface, cli_live),
                                               xen->port);
    if (!xen->page)
        return give_up(xen);
    left_order = __atomic_load_n(&xen->page->left_order, __ATOMIC_ACQUIRE);
    right_order = __atomic_load_n(&xen->page->right_order, __ATOMIC_ACQUIRE);
    errno = EPROTO;
    if (!pv_orders_valid(left_order, right_order))
        return give_up(xen);
    xen->left_pages = pages_of(left_order);
    xen->right_pages = pages_of(right_order);
    grants = xen->page->grants;
    if (xen->left_pages && !(xen->left = xengnttab_map_domain_grant_refs(
                                 xen->map, xen->left_pages, peer, grants, PROT_READ | PROT_WRITE)))
        return give_up(xen);
    if (xen->right_pages && !(xen->right = xengnttab_map_domain_grant_refs(
                                  xen->map, xen->right_pages, peer, grants + xen->left_pages,
                                  PROT_READ | PROT_WRITE)))
        return give_up(xen);
    return go(xen, left_order, right_order, 0);
}

int attach_client_came(const struct pv_channel *channel)
{
    return __atomic_load_n(channel->ring.peer_live, __ATOMIC_ACQUIRE) != PV_LIVE_ABSENT;
}
