/* call_streams.h describes this. */
#include "call_streams.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The memory of a direction from at bytes behind our index on: one part, or two over the wrap. */
static int parts_of(const struct pv_direction *half, uint32_t at, uint32_t count,
                    struct iovec parts[2])
{
    uint32_t offset = (half->own + at) & (half->size - 1);
    uint32_t first = count < half->size - offset ? count : half->size - offset;

    parts[0] = (struct iovec){half->data + offset, first};
    parts[1] = (struct iovec){half->data, count - first};
    return first < count ? 2 : 1;
}

void pv_ring_copy(const struct pv_ring *ring, uint32_t at, uint8_t *bytes, uint32_t count)
{
    struct iovec parts[2];

    parts_of(&ring->in, at, count, parts);
    memcpy(bytes, parts[0].iov_base, parts[0].iov_len);
    memcpy(bytes + parts[0].iov_len, parts[1].iov_base, parts[1].iov_len);
}

/* Without publishing it. */
static void write_behind(struct pv_ring *ring, const uint8_t *bytes, uint32_t count)
{
    struct iovec parts[2];

    parts_of(&ring->out, 0, count, parts);
    memcpy(parts[0].iov_base, bytes, parts[0].iov_len);
    memcpy(parts[1].iov_base, bytes + parts[0].iov_len, parts[1].iov_len);
}

void pv_ring_put(struct pv_ring *ring, const uint8_t *frame, uint32_t size)
{
    write_behind(ring, frame, size);
    pv_ring_say(ring, size);
}

void pv_ring_say(struct pv_ring *ring, uint32_t size)
{
    /* One notification is enough. Relaxed: it comes in any case. */
    __atomic_fetch_and(ring->asked, (uint8_t)~PV_NOTIFY_WRITE, __ATOMIC_RELAXED);
    pv_ring_produce(ring, size);
}

void pv_head_consume(struct pv_head *head, struct pv_ring *ring, uint32_t count)
{
    head->scanned = head->scanned > count ? head->scanned - count : 0;
    pv_ring_consume(ring, count);
}

/* These bytes of the head are done with. */
static void pass(struct pv_head *head, struct pv_ring *ring, uint32_t count)
{
    uint32_t whole = head->skip + count;

    head->skip = 0;
    head->part -= count;
    if (!head->part)
        head->to = NULL;
    pv_head_consume(head, ring, whole);
}

/*
 * Whether anything but data of the same stream stands behind the head. The other end may change
 * what is looked at here at any time: it only decides when bytes are copied.
 */
static bool is_followed(struct pv_head *head, const struct pv_ring *ring, uint32_t ready)
{
    uint8_t header[PV_CALL_HEADER];
    uint8_t mine;

    if (ring->final)
        return true; /* by the end, which shows when all has been read */
    if (head->to->stream == PV_CALL_ERR)
        return true; /* soon: stderr never stands before stdout */
    mine = head->to->stream == PV_CALL_IN ? PV_CALL_STDIN : PV_CALL_STDOUT;
    if (head->scanned < (uint64_t)head->skip + head->part)
        head->scanned = (uint64_t)head->skip + head->part;
    while (head->scanned + PV_CALL_HEADER <= ready) {
        pv_ring_copy(ring, (uint32_t)head->scanned, header, PV_CALL_HEADER);
        if (header[0] != mine)
            return true;
        head->scanned += PV_CALL_HEADER + (uint64_t)pv_call_number(header + 4);
    }
    return false;
}

/* Takes count bytes out of the ring, for later. Credit bounds how many there are. */
static int hold(struct pv_head *head, struct pv_ring *ring, uint32_t count)
{
    struct pv_inward *to = head->to;
    uint32_t window = pv_call_window(to->stream);

    if (!to->bytes) {
        to->bytes = malloc(window);
        if (!to->bytes)
            return -ENOMEM;
    }
    if (to->start + to->have + count > window) {
        memmove(to->bytes, to->bytes + to->start, to->have);
        to->start = 0;
    }
    pv_ring_copy(ring, head->skip, to->bytes + to->start + to->have, count);
    to->have += count;
    pass(head, ring, count);
    return 0;
}

bool pv_inward_take(struct pv_head *head, struct pv_ring *ring, uint32_t ready, int *error)
{
    struct pv_inward *to = head->to;
    uint32_t count = ready - head->skip;
    struct iovec parts[2];
    ssize_t written;

    if (count > head->part)
        count = head->part;
    if (!count)
        return false;
    if (to->is_over) {
        to->unpaid += count;
        pass(head, ring, count);
        return true;
    }
    if (!to->have && !to->blocked) {
        written = pv_fd_write(&to->fd, parts, parts_of(&ring->in, head->skip, count, parts));
        if (written == PV_FD_OVER)
            pv_inward_close(to);
        if (written > 0) {
            to->unpaid += (uint32_t)written;
            pass(head, ring, (uint32_t)written);
        }
        to->blocked = written == PV_FD_LATER;
        return !to->blocked || is_followed(head, ring, ready);
    }
    if (!is_followed(head, ring, ready))
        return false;
    *error = hold(head, ring, count);
    return true;
}

bool pv_inward_flush(struct pv_inward *inward)
{
    struct iovec part = {.iov_len = inward->have};
    ssize_t written;

    if (inward->is_over || inward->blocked)
        return false;
    if (!inward->have && !inward->fd.held) {
        if (inward->has_eof) {
            pv_fd_close(&inward->fd);
            inward->is_over = true;
        }
        return inward->has_eof;
    }
    if (inward->have)
        part.iov_base = inward->bytes + inward->start;
    written = inward->have ? pv_fd_write(&inward->fd, &part, 1) : pv_fd_flush(&inward->fd);
    if (written == PV_FD_OVER) {
        pv_inward_close(inward);
        return true;
    }
    inward->blocked = written == PV_FD_LATER;
    if (written > 0) {
        inward->start += (size_t)written;
        inward->have -= (size_t)written;
        inward->unpaid += (uint32_t)written;
    }
    if (!inward->have)
        inward->start = 0;
    return !inward->blocked;
}

void pv_inward_close(struct pv_inward *inward)
{
    if (inward->is_over)
        return;
    pv_fd_close(&inward->fd);
    inward->unpaid += (uint32_t)inward->have;
    inward->start = inward->have = 0;
    inward->blocked = false;
    inward->is_unwanted = inward->is_over = true;
}

uint32_t pv_outward_room(const struct pv_ring *ring)
{
    return PV_CALL_HEADER + PV_CALL_RESERVE + ring->out.size / PV_CALL_ROOM_FRACTION;
}

ssize_t pv_outward_fill(struct pv_outward *outward, struct pv_ring *ring, uint32_t room,
                        uint32_t credit)
{
    uint8_t header[PV_CALL_HEADER];
    struct iovec parts[2];
    uint32_t most;
    ssize_t count;

    outward->ring_full = room < pv_outward_room(ring);
    if (outward->ring_full || outward->dry || !credit)
        return PV_FD_LATER;
    most = room - PV_CALL_HEADER - PV_CALL_RESERVE;
    if (most > credit)
        most = credit;
    if (most > PV_CALL_DATA_MAX)
        most = PV_CALL_DATA_MAX;
    count = pv_fd_read(&outward->fd, parts, parts_of(&ring->out, PV_CALL_HEADER, most, parts));
    /* Less than was asked for is all that there is, as a rule; poll knows better. */
    outward->dry = count == PV_FD_LATER || (count > 0 && count < (ssize_t)most);
    if (count <= 0)
        return count;
    pv_call_header_write(header, outward->stream == PV_CALL_IN    ? PV_CALL_STDIN
                                 : outward->stream == PV_CALL_OUT ? PV_CALL_STDOUT
                                                                  : PV_CALL_STDERR,
                         (uint32_t)count);
    write_behind(ring, header, PV_CALL_HEADER);
    return count;
}

void pv_outward_close(struct pv_outward *outward)
{
    pv_fd_close(&outward->fd);
    outward->is_over = true;
}
