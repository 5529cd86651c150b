"""Fuzzes the state machine: any bytes are events or RemoteProtocolError, however they are cut.

With atheris installed:      python tests/protocol/fuzz_connection.py [libFuzzer's arguments]
Without, or for a short run: python tests/protocol/fuzz_connection.py --rounds 100000 [--seed 5]

Without atheris the bytes are random frames, and good frames with a few bytes changed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator

from pedos_protocol import codec
from pedos_protocol.connection import Connection
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import Closed, Event, Hello, NeedData, Request
from pedos_protocol.messages import SCHEMA, parse_params

HELLO = Hello((1, 1), "fuzz")

#: What mutations start from: a hello, a request, two answers, an error, a notice.
SEEDS = [
    codec.encode([2, "hello", {"versions": [1, 1], "program": "pedos-agent 0.1"}]),
    codec.encode([0, 1, "device.list", {"device_class": "usb", "vms": None, "deadline_ms": 5000}]),
    codec.encode([1, 1, None, {"devices": [{"device": "1-2", "size": None}], "policy": None}]),
    codec.encode([1, 2, {"code": "busy", "message": "it is", "data": {"request": "a"}}, None]),
    codec.encode([2, "attachment.ended", {"attachment": "0" * 16, "side": "export"}]),
    codec.encode([0, 2, "export.stop", {"attachment": "0123456789abcdef", "deadline_ms": 1}]),
]


def heard(pieces: list[bytes]) -> list[Event | str]:
    """What an end with two requests in flight makes of `pieces` and the end of the stream."""
    connection = Connection()
    connection.send(HELLO)
    for call_id in (1, 2):
        connection.send(Request(call_id, "vm.list", {}, 1000))
    events: list[Event | str] = []
    try:
        for piece in [*[piece for piece in pieces if piece], b""]:
            connection.receive_data(piece)
            while not isinstance(event := connection.next_event(), NeedData):
                events.append(event)
                if isinstance(event, Closed):
                    break
                if isinstance(event, Request) and event.method in SCHEMA:
                    with contextlib.suppress(RemoteProtocolError):
                        parse_params(event.method, event.params)
    except RemoteProtocolError as error:
        events.append(str(error))
    except LocalProtocolError as error:
        raise AssertionError("bytes that came were called an error of this side") from error
    return events


def check(data: bytes) -> None:
    """One round; anything but a quiet return is a finding."""
    # All of a huge input at once is no way in which a stream is read: at most a frame's size.
    size = codec.FRAME_MAX
    whole = heard([data[at : at + size] for at in range(0, len(data), size)])
    assert heard([bytes([byte]) for byte in data]) == whole, "how it is cut made a difference"


def inputs(seed: int) -> Iterator[bytes]:
    """Random inputs without end, the same ones for the same seed."""
    dice = random.Random(seed)
    while True:
        frames = [bytearray(dice.choice(SEEDS)) for _ in range(dice.randrange(1, 5))]
        data = bytearray(SEEDS[0]) if dice.random() < 0.8 else bytearray()
        for frame in frames:
            if dice.random() < 0.3:
                payload = dice.randbytes(dice.randrange(1, 40))
                frame[:] = len(payload).to_bytes(codec.HEADER_SIZE, "little") + payload
            data += frame
        for _ in range(dice.choice((0, 1, 1, 2, 5))):
            at = dice.randrange(len(data))
            change = dice.randrange(3)
            if change == 0:
                data[at] = dice.randrange(256)
            elif change == 1:
                del data[at : at + dice.randrange(4)]
            else:
                data[at:at] = dice.randbytes(dice.randrange(1, 4))
            if not data:
                break
        yield bytes(data)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="do not use atheris; so many random inputs")
    parser.add_argument("--seed", type=int, default=0)
    arguments, rest = parser.parse_known_args()
    rounds = arguments.rounds
    if rounds is None:
        try:
            import atheris  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            rounds = 100_000
        else:
            atheris.instrument_all()
            atheris.Setup([sys.argv[0], *rest], check)
            atheris.Fuzz()
            return
    for number, data in zip(range(rounds), inputs(arguments.seed), strict=False):
        try:
            check(data)
        except BaseException:
            print(f"round {number}: {data.hex()}", file=sys.stderr)
            raise
    print(f"{rounds} rounds, nothing found")


if __name__ == "__main__":
    main()
