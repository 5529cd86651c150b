"""What arrives at the far end of a pump."""

from __future__ import annotations

import trio


async def receives(stream: trio.SocketStream, expected: bytes) -> None:
    """AssertionError unless exactly these bytes come next."""
    got = bytearray()
    while len(got) < len(expected):
        got += await stream.receive_some()
    assert got == expected
