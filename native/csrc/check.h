/*
 * What looks at the bytes of a pump before they go on, one direction at a time. The pump copies
 * them out of shared memory first, so that what was checked is what goes on.
 */
#ifndef PEDOS_CHECK_H
#define PEDOS_CHECK_H

#include <stddef.h>
#include <stdint.h>

#define PV_REFUSED (-1)

struct pv_check {
    /*
     * Looks at the next count bytes, and may change them, or take some out and move the others up
     * (dropped). Returns how many of what is left may go on; the rest is the beginning of something,
     * and is shown again with more behind it. Or PV_REFUSED. A check leaves fewer than PV_CHECK_KEEP
     * bytes.
     */
    int64_t (*from_ring)(struct pv_check *check, uint8_t *bytes, size_t count);
    int64_t (*to_ring)(struct pv_check *check, uint8_t *bytes, size_t count);
    size_t dropped;  /* bytes that the last look took out */
    const char *why; /* why it refused; NULL: it did not */
};

#define PV_CHECK_KEEP 48

#endif
