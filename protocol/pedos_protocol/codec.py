"""Frames: a length and one MessagePack array, read strictly.

    u32 little-endian: bytes of payload (1 to FRAME_MAX)
    payload:           one MessagePack array, nothing after it

Both directions check the same: `decode` accepts exactly what `encode` accepts. MessagePack
libraries accept a good deal more by default. This codec refuses the rest (repeated keys, keys that
are not text, extension types, infinities, depth, trailing bytes), because two readers could read it
differently, or because it costs the reader more than it cost the sender.

The C code of native/wire (read.c, write.c) checks and reads in one pass. Programs read frames with
a `Connection`, which also makes events of them; `decode` is the same reading, for tests.
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
]

INT_MIN = -(2**63)  # what MessagePack can hold
INT_MAX = 2**64 - 1
