/*
 * Two threads use the two ends of one ring over one mapping, and make no system call: only the
 * indices order the bytes. ThreadSanitizer runs this, because it compares addresses and so cannot
 * see a race between two mappings of one memfd. Exits with 0 when every byte came, in order.
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "ring.h"

#define COUNT 200000u

static struct pv_ring server, client;

static void no_event(void *arg)
{
    (void)arg; /* both ends poll the indices */
}

static void *writes(void *arg)
{
    uint32_t sent = 0;

    (void)arg;
    while (sent < COUNT) {
        uint8_t *span;
        int64_t room = pv_ring_writable(&client, &span);

        if (room < 0) {
            sched_yield();
            continue;
        }
        if (room > COUNT - sent)
            room = COUNT - sent;
        for (int64_t i = 0; i < room; i++)
            span[i] = (uint8_t)(sent + i);
        pv_ring_produce(&client, (uint32_t)room);
        sent += (uint32_t)room;
    }
    pv_ring_close(&client);
    return NULL;
}

int main(void)
{
    struct vchan_interface *page = calloc(1, PV_PAGE_SIZE);
    uint32_t received = 0;
    pthread_t thread;
    int64_t ready;

    if (!page)
        return 2;
    pv_page_init(page, PV_ORDER_MIN, PV_ORDER_INPAGE);
    pv_ring_attach(&server, page, PV_ORDER_MIN, PV_ORDER_INPAGE, NULL, NULL, 1, no_event, NULL);
    pv_ring_attach(&client, page, PV_ORDER_MIN, PV_ORDER_INPAGE, NULL, NULL, 0, no_event, NULL);
    if (pthread_create(&thread, NULL, writes, NULL) != 0)
        return 2;
    do {
        uint8_t *span;

        ready = pv_ring_readable(&server, &span);
        if (ready == PV_WOULD_BLOCK)
            sched_yield();
        for (int64_t i = 0; i < ready; i++)
            if (span[i] != (uint8_t)(received + i))
                return 1;
        if (ready > 0) {
            pv_ring_consume(&server, (uint32_t)ready);
            received += (uint32_t)ready;
        }
    } while (ready > 0 || ready == PV_WOULD_BLOCK);
    pthread_join(thread, NULL);
    free(page);
    return ready == PV_CLOSED && received == COUNT ? 0 : 1;
}
