/*
 * For programs that try rules one by one, with the peer's side of the page written by hand: a server's
 * end in a page of this process. Each has a `rules` table and exits with 0, or names the first that
 * does not hold.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"

#define ORDER PV_ORDER_PAGES
#define SIZE (1u << ORDER)

static _Alignas(PV_PAGE_SIZE) union {
    struct vchan_interface page;
    uint8_t bytes[PV_PAGE_SIZE];
} shared;
static struct vchan_interface *const page = &shared.page;
static uint8_t left[SIZE], right[SIZE];
static struct pv_channel channel;
static struct pv_ring *const ring = &channel.ring; /* the server's end, unless told otherwise */
static unsigned notified;
static const char *rule;

#define HOLDS(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s: line %d: not %s\n", rule, __LINE__, #condition);                 \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

static void count_notify(void *arg)
{
    (void)arg;
    notified++;
}

static inline void server(void)
{
    memset(&shared, 0, sizeof shared);
    memset(&channel, 0, sizeof channel);
    pv_page_init(page, ORDER, ORDER);
    pv_ring_attach(ring, page, ORDER, ORDER, left, right, 1, count_notify, NULL);
    page->cli_live = PV_LIVE_OPEN;
    notified = 0;
}

/* As after 2^32 - before bytes each way. */
static inline void near_overflow(uint32_t before)
{
    server();
    page->left.prod = page->left.cons = page->right.prod = page->right.cons = 0u - before;
    ring->in.own = ring->in.peer = ring->out.own = ring->out.peer = 0u - before;
}

struct rule {
    const char *name;
    void (*try)(void);
};
#define RULE(function) {#function, function}

static int try_all(const struct rule *rules, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        rule = rules[i].name;
        rules[i].try();
    }
    return 0;
}
