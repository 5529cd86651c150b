"""What USB/IP kernels send each other, made by hand: headers, data, tables of packets."""

from __future__ import annotations

import struct

DEVID = 0x10002
OUT, IN = 0, 1
SUBMIT, UNLINK, SUBMITTED, UNLINKED = 1, 2, 3, 4

_HEADER = struct.Struct(">IIIII")
_SUBMIT = struct.Struct(">IIiIi8s")
_SUBMITTED = struct.Struct(">iIiIi8x")


def header(command: int, seqnum: int, rest: bytes, *, devid: int, direction: int, ep: int) -> bytes:
    return (_HEADER.pack(command, seqnum, devid, direction, ep) + rest).ljust(48, b"\0")


def submit(
    seqnum: int,
    direction: int,
    length: int,
    *,
    data: bytes | None = None,
    packets: list[tuple[int, int]] | None = None,
    number: int | None = None,
    flags: int = 0,
    devid: int = DEVID,
    ep: int = 1,
) -> bytes:
    """CMD_SUBMIT. `packets` are offset and length of each isochronous one."""
    listed = packets or []
    count = len(listed) if number is None else number
    rest = _SUBMIT.pack(flags, length, 0, count, 0, bytes(8))
    if data is None:
        data = b"d" * length if direction == OUT else b""
    table = b"".join(struct.pack(">IIII", *each, 0, 0) for each in listed)
    return header(SUBMIT, seqnum, rest, devid=devid, direction=direction, ep=ep) + data + table


def unlink(seqnum: int, which: int, *, devid: int = DEVID) -> bytes:
    """CMD_UNLINK."""
    return header(UNLINK, seqnum, struct.pack(">I", which), devid=devid, direction=0, ep=0)


def submitted(
    seqnum: int,
    actual: int,
    *,
    data: bytes = b"",
    packets: list[tuple[int, int, int]] | None = None,
    number: int | None = None,
    errors: int = 0,
    status: int = 0,
) -> bytes:
    """RET_SUBMIT, as Linux sends it: no devid, direction or endpoint. `packets` are offset, length
    and actual length of each."""
    listed = packets or []
    count = len(listed) if number is None else number
    rest = _SUBMITTED.pack(status, actual, 0, count, errors)
    table = b"".join(struct.pack(">IIII", *each, 0) for each in listed)
    return header(SUBMITTED, seqnum, rest, devid=0, direction=0, ep=0) + data + table


def unlinked(seqnum: int, status: int = 0) -> bytes:
    """RET_UNLINK."""
    return header(UNLINKED, seqnum, struct.pack(">i", status), devid=0, direction=0, ep=0)
