"""Each step of the notify protocol, and what it looks like when it is missing."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change to one file, and a job of explore.c in which it must show."""

    name: str
    file: str
    old: str
    new: str
    job: str
    found: str = "lost wake-up"


ONE = "one 2 8 2 2"
PUMP = "pump 2 8 2 2"
TURN = "turn 2 4 2 2"

MUTANTS = [
    Mutant(
        "answer() without its fence",
        "ring.c",
        "    __atomic_thread_fence(__ATOMIC_SEQ_CST);\n    /* A plain look first",
        "    /* A plain look first",
        ONE,
    ),
    Mutant(
        "arm without its fence",
        "ring.c",
        "see answer(). */\n    __atomic_thread_fence(__ATOMIC_SEQ_CST);\n",
        "see answer(). */\n",
        ONE,
    ),
    Mutant(
        "no arming at all",
        "ring.c",
        "    __atomic_fetch_or(ring->asking, (uint8_t)bits, __ATOMIC_SEQ_CST);\n",
        "    (void)bits;\n",
        ONE,
    ),
    Mutant(
        "the reader arms and does not look again",
        "channel.c",
        "PV_NOTIFY_WRITE);\n        count = pv_ring_readable(&channel->ring, span);\n",
        "PV_NOTIFY_WRITE);\n",
        ONE,
    ),
    Mutant(
        "the writer arms and does not look again",
        "channel.c",
        "PV_NOTIFY_READ);\n        room = pv_ring_room(&channel->ring);\n",
        "PV_NOTIFY_READ);\n",
        ONE,
    ),
    Mutant(
        "the reader looks again and does not arm",
        "channel.c",
        "        pv_ring_arm(&channel->ring, PV_NOTIFY_WRITE);\n",
        "",
        ONE,
    ),
    Mutant(
        "the writer looks again and does not arm",
        "channel.c",
        "        pv_ring_arm(&channel->ring, PV_NOTIFY_READ);\n",
        "",
        ONE,
    ),
    Mutant(
        "a reader that answers nobody",
        "ring.c",
        "    if (in->peer - in->own <= in->size / 2) {\n"
        "        ring->withheld = 0;\n"
        "        answer(ring, PV_NOTIFY_READ);\n"
        "    } else {\n"
        "        ring->withheld = 1;\n"
        "    }\n",
        "    (void)in;\n",
        ONE,
    ),
    Mutant(
        "a writer that answers nobody",
        "ring.c",
        "    answer(ring, PV_NOTIFY_WRITE);\n",
        "",
        ONE,
    ),
    Mutant(
        "a close that wakes nobody",
        "ring.c",
        "    ring->notify(ring->notify_arg); /* whether it asked",
        "    /* whether it asked",
        "one 4 2 2 2",
    ),
    Mutant(
        "the index read before the live flag",
        "ring.c",
        "        uint8_t live = __atomic_load_n(ring->peer_live, __ATOMIC_ACQUIRE);\n"
        "        /* Acquire: the bytes below prod must not be read before prod is. */\n"
        "        uint32_t prod = __atomic_load_n(in->watched, __ATOMIC_ACQUIRE);\n",
        "        uint32_t prod = __atomic_load_n(in->watched, __ATOMIC_ACQUIRE);\n"
        "        uint8_t live = __atomic_load_n(ring->peer_live, __ATOMIC_ACQUIRE);\n",
        "one 4 2 2 2",
        "bytes lost at close",
    ),
    Mutant(
        "a pump that does not arm",
        "pump.c",
        "    pv_ring_arm(&loop->channel->ring, bits);\n",
        "",
        PUMP,
    ),
    Mutant(
        "a pump that does not look for bytes again",
        "pump.c",
        "    return (bits & PV_NOTIFY_WRITE) && pv_ring_ready(ring) != PV_WOULD_BLOCK;\n",
        "    return false;\n",
        PUMP,
    ),
    Mutant(
        "a pump that does not look for room again",
        "pump.c",
        "    if (bits & PV_NOTIFY_READ) {\n",
        "    if (0) {\n",
        PUMP,
    ),
    Mutant(
        "a turn that takes its request back after it has armed",
        "channel.c",
        "            channel->armed = part == PV_WOULD_BLOCK;\n",
        "            channel->armed = part == PV_WOULD_BLOCK;\n"
        "            __atomic_fetch_and(channel->ring.asking, (uint8_t)~PV_NOTIFY_WRITE, 0);\n",
        TURN,
    ),
    Mutant(
        "a turn that left bytes and says that it has armed",
        "channel.c",
        "    channel->armed = 0;\n",
        "",
        TURN,
    ),
    Mutant(
        "a turn that saw the end and says that it has armed",
        "channel.c",
        "            channel->armed = part == PV_WOULD_BLOCK;\n",
        "            channel->armed = 1;\n",
        TURN,
    ),
]
