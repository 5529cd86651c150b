"""Malicious VMs: each gets the control channel that its agent should serve.

Every one is a real vchan server in the place where dom0's service looks for a VM's agent.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from pedos_protocol.codec import FRAME_MAX, encode
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

HELLO = encode([2, "hello", {"versions": [1, 1], "program": "pedos-agent 0.1"}])
Params = dict[str, object]


def device(name: str, **more: object) -> Params:
    return {
        "device_class": "block",
        "device": name,
        "identity": "",
        "description": "a disk",
        "size": 4096,
        "parent": None,
        "read_only": False,
        "busy": None,
        **more,
    }


def report(*devices: Params, **more: object) -> bytes:
    params = {"revision": 1, "devices": list(devices), "exports": [], "imports": [], **more}
    return encode([0, 1, "agent.report", {**params, "deadline_ms": 5000}])


async def says(stream: VchanStream, *frames: bytes) -> None:
    """Sends bytes and then stays, as if it waited for an answer."""
    for frame in frames:
        await stream.send_all(frame)
    await stays(stream)


async def stays(stream: VchanStream) -> None:
    """Reads until dom0's service disconnects."""
    while await stream.receive_some(65536):
        pass


async def garbage(stream: VchanStream) -> None:
    await says(stream, b"GET / HTTP/1.1\r\nHost: dom0\r\n\r\n")


async def oversized_frame(stream: VchanStream) -> None:
    await says(stream, HELLO, struct.pack("<I", FRAME_MAX + 1))


async def wrong_version(stream: VchanStream) -> None:
    await says(stream, encode([2, "hello", {"versions": [7, 9], "program": "x"}]))


async def no_hello(stream: VchanStream) -> None:
    await says(stream, report())


async def duplicate_keys(stream: VchanStream) -> None:
    payload = b"\x93\x02\xa5hello\x82\xa1a\x01\xa1a\x02"
    await says(stream, struct.pack("<I", len(payload)) + payload)


async def bad_device_id(stream: VchanStream) -> None:
    await says(stream, HELLO, report(device("../../etc/passwd")))


async def too_many_devices(stream: VchanStream) -> None:
    await says(stream, HELLO, report(*(device(f"sd{number}") for number in range(129))))


async def flood(stream: VchanStream) -> None:
    notice = encode([2, "attachment.ended", {}])
    await says(stream, HELLO, report(), *([notice * 500] * 100))


async def calls_without_end(stream: VchanStream) -> None:
    listing = {"device_class": "block", "vms": None, "exclude": [], "after": None}
    calls = b"".join(
        encode([0, number, "device.list", {**listing, "deadline_ms": 600_000}])
        for number in range(2, 400)
    )
    await says(stream, HELLO, report(), calls)


async def answers_to_nothing(stream: VchanStream) -> None:
    await says(stream, HELLO, report(), encode([1, 77, None, {}]))


async def ends_what_it_has_not(stream: VchanStream) -> None:
    ended = {"attachment": "0123456789abcdef", "side": "export", "reason": "because"}
    notice = encode([2, "attachment.ended", {**ended, "surplus": 1}])
    await says(stream, HELLO, report(), notice)


async def dies_in_a_frame(stream: VchanStream) -> None:
    await stream.send_all(HELLO + report()[:20])
    await stream.aclose()


async def dead_after_report(stream: VchanStream) -> None:
    await stream.send_all(HELLO + report(device("sda")))
    await stream.receive_some(100)
    await stream.aclose()


#: VM name -> what it does. dom0's service disconnects each and writes that down.
BREACHES: dict[str, Callable[[VchanStream], Awaitable[None]]] = {
    "garbage": garbage,
    "oversized": oversized_frame,
    "version": wrong_version,
    "nohello": no_hello,
    "keys": duplicate_keys,
    "badid": bad_device_id,
    "toomany": too_many_devices,
    "flood": flood,
    "calls": calls_without_end,
    "answers": answers_to_nothing,
    "ended": ends_what_it_has_not,
    "halfdead": dies_in_a_frame,
    "dead": dead_after_report,
}


@asynccontextmanager
async def polite_with_ugly_names(stream: VchanStream) -> AsyncIterator[None]:
    """A VM that keeps to the protocol, with the ugliest descriptions that it can think of."""
    ugly = (
        "\x1b[2J\x1b[31mclear",
        "<script>alert(1)</script>",
        "\u202etxt.exe",
        "x" * 10_000,
        "a\nb\tc\0d",
    )
    devices = [device(f"sd{n}", description=text) for n, text in enumerate(ugly)]
    peer = Peer(stream, program="pedos-agent 0.1", handlers={})
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        state = {"revision": 1, "devices": devices, "exports": [], "imports": []}
        await peer.call("agent.report", state, timeout=5)
        yield
        nursery.cancel_scope.cancel()
