"""The changes that mutants.py tries, but those of a channel and of the guard. Data only."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change to one file of native/csrc, and the test that must fail for it.

    why names what the original is there for ("row N": of the list of vchan's known defects, see
    test_rows.py). test is "rules" (of the ring), "rules channel", "guard", "orders",
    "explore JOB" or "pytest NAME..." (test_NAME.py).
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    test: str = "rules"


_HOSTILE = "pytest hostile"
_PUMP = "pytest pump_ends pump death"

MUTANTS = [
    # ---- ring.c: geometry ----
    Mutant(
        "left order too low",
        "ring.c",
        "left_order < PV_ORDER_MIN || ",
        "",
        "a ring outside the page",
    ),
    Mutant(
        "left order too high",
        "ring.c",
        "left_order > PV_ORDER_MAX || ",
        "",
        "a grant list outside the page",
    ),
    Mutant(
        "right order too low",
        "ring.c",
        "right_order < PV_ORDER_MIN ||\n",
        "0 ||\n",
        "a ring outside the page",
    ),
    Mutant(
        "right order too high",
        "ring.c",
        "        right_order > PV_ORDER_MAX)\n",
        "        0)\n",
        "a grant list outside the page",
    ),
    Mutant(
        "two rings in one place",
        "ring.c",
        "    if (left_order == right_order && left_order < PV_ORDER_PAGES)\n        return 0;\n",
        "",
        "rings that overlap",
    ),
    Mutant(
        "grants in the small ring",
        "ring.c",
        "        if (sizeof(struct vchan_interface) + grants * sizeof(uint32_t) > "
        "SMALL_RING_OFFSET)\n            return 0;\n",
        "        (void)grants;\n",
        "rings that overlap",
    ),
    Mutant(
        "grants in any ring",
        "ring.c",
        "    if (left_order == PV_ORDER_MIN || right_order == PV_ORDER_MIN) {\n",
        "    if (1) {\n",
        "interop: 11 and 20 go together",
    ),
    Mutant(
        "small ring elsewhere",
        "ring.c",
        "    if (order == PV_ORDER_MIN)\n",
        "    if (order == 0)\n",
        "libxenvchan's layout",
    ),
    Mutant(
        "in-page ring elsewhere",
        "ring.c",
        "    if (order == PV_ORDER_INPAGE)\n",
        "    if (order == 0)\n",
        "libxenvchan's layout",
    ),
    Mutant(
        "client from the start",
        "ring.c",
        "page->cli_live = PV_LIVE_ABSENT;",
        "page->cli_live = PV_LIVE_OPEN;",
        "libxenvchan waits for a client by this",
    ),
    Mutant(
        "server not armed at first",
        "ring.c",
        "    page->cli_notify = PV_NOTIFY_WRITE;",
        "    page->cli_notify = 0;",
        "row 7",
    ),
    Mutant(
        "roles swapped",
        "ring.c",
        "    if (is_server) {\n",
        "    if (!is_server) {\n",
        "libxenvchan's layout",
    ),
    Mutant(
        "client not armed at first",
        "ring.c",
        "        pv_ring_arm(ring, PV_NOTIFY_WRITE);\n",
        "",
        "row 7",
    ),
    Mutant(
        "client unannounced",
        "ring.c",
        "        __atomic_store_n(&page->cli_live, PV_LIVE_OPEN, __ATOMIC_RELEASE);\n",
        "",
        "libxenvchan waits for a client by this",
    ),
    Mutant(
        "client comes silently",
        "ring.c",
        "        notify(notify_arg); /* the library",
        "        /* the library",
        "libxenvchan waits for a client by this",
    ),
    # ---- ring.c: what a peer publishes ----
    Mutant(
        "more bytes than fit",
        "ring.c",
        "prod - in->own > in->size || ",
        "",
        "row 4",
    ),
    Mutant(
        "bytes taken back",
        "ring.c",
        " || prod - in->own < in->peer - in->own)\n",
        ")\n",
        "row 4",
    ),
    Mutant(
        "one byte too many",
        "ring.c",
        "prod - in->own > in->size",
        "prod - in->own > in->size + 1",
        "row 4",
    ),
    Mutant(
        "full counts as too many",
        "ring.c",
        "prod - in->own > in->size",
        "prod - in->own >= in->size",
        "full is prod - cons == size",
    ),
    Mutant(
        "read the unwritten",
        "ring.c",
        "    if (out->own - cons > out->own - out->peer)\n"
        "        return pv_ring_fail(ring, PV_BROKEN);\n",
        "",
        "row 4",
    ),
    Mutant(
        "reading may go back",
        "ring.c",
        "out->own - cons > out->own - out->peer",
        "out->own - cons > out->size",
        "row 4",
    ),
    Mutant(
        "reader's index not kept",
        "ring.c",
        "    out->peer = cons;\n",
        "",
        "row 4: later looks compare with it",
    ),
    Mutant(
        "prod read twice",
        "ring.c",
        "        in->peer = prod;\n",
        "        in->peer = __atomic_load_n(in->watched, __ATOMIC_ACQUIRE);\n",
        "row 4: the copy that was checked is the one that counts",
        "orders",
    ),
    Mutant(
        "cons read twice",
        "ring.c",
        "    out->peer = cons;\n",
        "    out->peer = cons = __atomic_load_n(out->watched, __ATOMIC_ACQUIRE);\n",
        "row 4: the copy that was checked is the one that counts",
        "orders",
    ),
    Mutant(
        "reading goes on when broken",
        "ring.c",
        "    if (ring->broken)\n        return ring->broken;\n    if (!ring->final) {\n",
        "    if (!ring->final) {\n",
        "row 4: for good",
    ),
    Mutant(
        "writing goes on when broken",
        "ring.c",
        "    if (ring->broken)\n        return ring->broken;\n    if (ring->closed ||",
        "    if (ring->closed ||",
        "row 4: for good",
    ),
    Mutant(
        "broken is not kept",
        "ring.c",
        "        ring->broken = code;\n",
        "        (void)code;\n",
        "row 4: for good",
    ),
    Mutant(
        "first failure overwritten",
        "ring.c",
        "    if (!ring->broken)\n        ring->broken = code;\n",
        "    ring->broken = code;\n",
        "the first reason is the one that is reported",
    ),
    Mutant(
        "peer not told of failure",
        "ring.c",
        "    pv_ring_close(ring); /* our live flag",
        "    /* our live flag",
        "row 4: it does not look idle",
    ),
    # ---- ring.c: own indices are private ----
    Mutant(
        "own read index from the page",
        "ring.c",
        "    in->own += n;\n",
        "    in->own = *in->publish + n;\n",
        "row 5",
    ),
    Mutant(
        "own write index from the page",
        "ring.c",
        "    out->own += n;\n",
        "    out->own = *out->publish + n;\n",
        "row 5",
    ),
    Mutant(
        "span past the end",
        "ring.c",
        "    return count < half->size - offset ? count : half->size - offset;\n",
        "    return count;\n",
        "a span that leaves the ring",
    ),
    Mutant(
        "index not masked",
        "ring.c",
        "    uint32_t offset = half->own & (half->size - 1);\n",
        "    uint32_t offset = half->own % (half->size + 1);\n",
        "indices run freely",
    ),
    Mutant(
        "room in a full ring",
        "ring.c",
        "    if (out->own - cons == out->size)\n        return PV_WOULD_BLOCK;\n",
        "",
        "full is prod - cons == size",
    ),
    # ---- ring.c: ends ----
    Mutant(
        "an end that is not final",
        "ring.c",
        "            ring->final = 1;\n",
        "            ring->final = in->peer == in->own;\n",
        "what comes after the close does not count",
    ),
    Mutant(
        "looks on after the end",
        "ring.c",
        "    if (!ring->final) {\n",
        "    if (1) {\n",
        "what comes after the close does not count",
    ),
    Mutant(
        "end before the last bytes",
        "ring.c",
        "    if (in->peer != in->own)\n        return in->peer - in->own;\n    if (!ring->final)\n"
        "        return PV_WOULD_BLOCK;\n",
        "    if (!ring->final)\n"
        "        return in->peer != in->own ? (int64_t)(in->peer - in->own) : PV_WOULD_BLOCK;\n",
        "row 1",
    ),
    Mutant(
        "a close that is not seen",
        "ring.c",
        "        if (live == PV_LIVE_CLOSED || ring->gone) {\n",
        "        if (ring->gone) {\n",
        "row 1",
    ),
    Mutant(
        "a death that is not seen",
        "ring.c",
        "        if (live == PV_LIVE_CLOSED || ring->gone) {\n",
        "        if (live == PV_LIVE_CLOSED) {\n",
        "row 6",
    ),
    Mutant(
        "a death that looks like a close",
        "ring.c",
        "            ring->clean = live == PV_LIVE_CLOSED;\n",
        "            ring->clean = 1;\n",
        "row 6",
    ),
    Mutant(
        "writing to a closed peer",
        "ring.c",
        "ring->closed || __atomic_load_n(ring->peer_live, __ATOMIC_ACQUIRE) == PV_LIVE_CLOSED)",
        "ring->closed)",
        "nobody would read it",
    ),
    Mutant(
        "writing after our close",
        "ring.c",
        "    if (ring->closed || __atomic",
        "    if (__atomic",
        "the flag says that the last byte is written",
    ),
    Mutant(
        "writing to a dead peer",
        "ring.c",
        "    if (ring->gone)\n        return PV_DIED;\n",
        "",
        "row 6",
    ),
    Mutant(
        "two goodbyes",
        "ring.c",
        "    if (ring->closed)\n        return;\n",
        "",
        "idempotent",
    ),
    # ---- ring.c: who is woken ----
    Mutant(
        "wakes without being asked",
        "ring.c",
        "    if (!(__atomic_load_n(ring->asked, __ATOMIC_RELAXED) & bit))\n        return;\n"
        "    if (__atomic_fetch_and(ring->asked, (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit)\n",
        "    __atomic_fetch_and(ring->asked, (uint8_t)~bit, __ATOMIC_SEQ_CST);\n",
        "a wake-up costs more than a round trip",
    ),
    Mutant(
        "answers both requests at once",
        "ring.c",
        "(uint8_t)~bit, __ATOMIC_SEQ_CST)",
        "0, __ATOMIC_SEQ_CST)",
        "row 7",
    ),
    Mutant(
        "no hysteresis",
        "ring.c",
        "    if (in->peer - in->own <= in->size / 2) {\n",
        "    if (1) {\n",
        "one wake-up for half a ring",
    ),
    Mutant(
        "no news at half",
        "ring.c",
        "    if (in->peer - in->own <= in->size / 2) {\n",
        "    if (0) {\n",
        "a reader that does not sleep must wake the writer, too",
    ),
    Mutant(
        "withheld for ever",
        "ring.c",
        "    if (ring->withheld) {\n        ring->withheld = 0;\n"
        "        answer(ring, PV_NOTIFY_READ);\n    }\n",
        "",
        "row 7: two that both wait for a little room",
    ),
    Mutant(
        "withheld not noted",
        "ring.c",
        "        ring->withheld = 1;\n",
        "",
        "row 7: two that both wait for a little room",
    ),
    # ---- ring.c: what orders memory ----
    Mutant(
        "acquire of prod",
        "ring.c",
        "(in->watched, __ATOMIC_ACQUIRE)",
        "(in->watched, __ATOMIC_RELAXED)",
        "bytes before the index",
        "orders",
    ),
    Mutant(
        "release of prod",
        "ring.c",
        "(out->publish, out->own, __ATOMIC_RELEASE)",
        "(out->publish, out->own, __ATOMIC_RELAXED)",
        "bytes before the index",
        "orders",
    ),
    Mutant(
        "acquire of cons",
        "ring.c",
        "(out->watched, __ATOMIC_ACQUIRE)",
        "(out->watched, __ATOMIC_RELAXED)",
        "reading before the room",
        "orders",
    ),
    Mutant(
        "release of cons",
        "ring.c",
        "(in->publish, in->own, __ATOMIC_RELEASE)",
        "(in->publish, in->own, __ATOMIC_RELAXED)",
        "reading before the room",
        "orders",
    ),
    Mutant(
        "acquire of the live flag",
        "ring.c",
        "live = __atomic_load_n(ring->peer_live, __ATOMIC_ACQUIRE)",
        "live = __atomic_load_n(ring->peer_live, __ATOMIC_RELAXED)",
        "row 1",
        "orders",
    ),
    Mutant(
        "release of the live flag",
        "ring.c",
        "(ring->own_live, PV_LIVE_CLOSED, __ATOMIC_RELEASE)",
        "(ring->own_live, PV_LIVE_CLOSED, __ATOMIC_RELAXED)",
        "row 1",
        "orders",
    ),
    # ---- shm.c ----
    Mutant(
        "a memfd without seals",
        "shm.c",
        "    if (seals < 0 || (seals & SEALS) != SEALS)\n        return -EPROTO;\n",
        "    (void)seals;\n",
        "a page that shrinks kills us",
        _HOSTILE,
    ),
    Mutant(
        "some of the seals",
        "shm.c",
        "(seals & SEALS) != SEALS",
        "!(seals & SEALS)",
        "a page that shrinks kills us",
        _HOSTILE,
    ),
    Mutant(
        "a memfd of any size above",
        "shm.c",
        "    if (status.st_size < (off_t)PV_PAGE_SIZE ||\n"
        "        status.st_size > (off_t)pv_layout_size(PV_ORDER_MAX, PV_ORDER_MAX))\n",
        "    if (status.st_size > (off_t)pv_layout_size(PV_ORDER_MAX, PV_ORDER_MAX))\n",
        "a page that is not there",
        _HOSTILE,
    ),
    Mutant(
        "event descriptor that blocks us",
        "shm.c",
        "!is_nonblocking(event_fd) || ",
        "",
        "a notification must never block",
        _HOSTILE,
    ),
    Mutant(
        "notify descriptor that blocks us",
        "shm.c",
        " || !is_nonblocking(notify_fd))",
        ")",
        "a notification must never block",
        _HOSTILE,
    ),
    Mutant(
        "any orders of a server",
        "shm.c",
        "    if (!pv_orders_valid(left_order, right_order) ||\n"
        "        pv_layout_size(left_order, right_order) != length)\n",
        "    if (pv_layout_size(left_order, right_order) != length)\n",
        "rings that overlap",
        _HOSTILE,
    ),
    Mutant(
        "orders that the memory does not hold",
        "shm.c",
        " ||\n        pv_layout_size(left_order, right_order) != length)\n",
        ")\n",
        "a ring outside the memory",
        _HOSTILE,
    ),
    Mutant(
        "memory that may not be written",
        "shm.c",
        "errno == EPERM ? -EPROTO : -errno;",
        "-errno;",
        "one error for every bad offer",
        _HOSTILE,
    ),
    # ---- pump.c ----
    Mutant(
        "a pump that reads for ever",
        "pump.c",
        "    if (loop->in_left > LAST_WORDS)\n        loop->in_left = LAST_WORDS;\n",
        "",
        "a program that goes on writing keeps the channel alive",
        _PUMP,
    ),
    Mutant(
        "a pump that does not close at the end of its input",
        "pump.c",
        "    loop->reading = false;\n    pv_channel_close(loop->channel);\n",
        "    loop->reading = false;\n",
        "the peer may know at once",
        _PUMP,
    ),
    Mutant(
        "a pump that drops what was sent",
        "pump.c",
        "    loop->out_left = ready > 0 ? (uint64_t)ready : 0;\n",
        "    loop->out_left = 0;\n",
        "row 1",
        _PUMP,
    ),
    Mutant(
        "a pump that forgets to cancel",
        "pump.c",
        "        if (__atomic_load_n(&pump->cancelled, __ATOMIC_RELAXED)) {\n",
        "        if (0) {\n",
        "a pump can be stopped at any time",
        _PUMP,
    ),
    Mutant(
        "a pump whose write blocks",
        "pump.c",
        "fcntl(fd_out, F_SETFL, out_flags | O_NONBLOCK) < 0",
        "0",
        "nobody could cancel it",
        _PUMP,
    ),
    Mutant(
        "a pump that takes a bad index for a close",
        "pump.c",
        "    ready = pv_ring_readable(ring, &span);\n",
        "    ready = pv_ring_readable(ring, &span);\n    ready = ready == PV_BROKEN ? PV_CLOSED : "
        "ready;\n",
        "row 4",
        _HOSTILE,
    ),
]

# (text of ring.c, why nothing goes wrong without it)
UNTOUCHED = [
    (
        "__atomic_store_n(&page->cli_live, PV_LIVE_OPEN, __ATOMIC_RELEASE)",
        "release: who sees the flag needs nothing else; a request is followed by a full fence",
    ),
    (
        "    if (!(__atomic_load_n(ring->asked, __ATOMIC_RELAXED) & bit))\n        return;\n",
        "saves the locked operation; the one after it decides",
    ),
]
