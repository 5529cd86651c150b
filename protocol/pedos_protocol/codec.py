"""Frames: a length and one MessagePack array, read strictly.

    u32 little-endian: bytes of payload (1 to FRAME_MAX)
    payload:           one MessagePack array, nothing after it

Both directions check the same: a value that `encode` accepts, `decode` accepts, and the other
way round. MessagePack libraries take a good deal more than that by default; what they take and
this one refuses (repeated keys, keys that are not text, extension types, infinities, depth,
trailing bytes) is what two readers could read differently, or what costs the reader more than
it cost the sender.

All of it is C, native/wire/wire.c: the checks and the reading are one pass there.
"""

from __future__ import annotations

from ._wire import (
    CONTAINERS_MAX,
    DEPTH_MAX,
    FRAME_MAX,
    HEADER_SIZE,
    ITEMS_MAX,
    decode,
    encode,
    next_message,
)

__all__ = [
    "CONTAINERS_MAX",
    "DEPTH_MAX",
    "FRAME_MAX",
    "HEADER_SIZE",
    "INT_MAX",
    "INT_MIN",
    "ITEMS_MAX",
    "decode",
    "encode",
    "next_message",
]

INT_MIN = -(2**63)  # what MessagePack can hold
INT_MAX = 2**64 - 1
