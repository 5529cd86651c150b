"""What the check of USB/IP streams lets through, and what it refuses."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import pytest
import trio
from pedos_vchan.pump import PumpResult, Why, pump
from pedos_vchan.usbip import (
    BYTES_MAX,
    COMMANDS_MAX,
    LATE_MAX,
    PACKETS_MAX,
    TRANSFER_MAX,
    RefusedError,
    UsbipCheck,
)

from tests.patience import PATIENCE

from .conftest import Pairs
from .receiving import receives
from .test_pump_ends import pipe, read_all
from .test_stream import receive_exactly
from .usbip_stream import DEVID, IN, OUT, submit, submitted, unlink, unlinked

Look = Callable[[bytearray], int]

#: Commands and their returns as a storage device, a keyboard and a sound card have them.
COMMANDS = [
    submit(1, IN, 18, ep=0),
    submit(2, OUT, 31),
    submit(3, IN, 4096),
    submit(4, IN, 8, ep=3),
    unlink(5, 4),
    submit(6, OUT, 24, packets=[(0, 8), (8, 8), (16, 8)]),
    submit(7, IN, 24, packets=[(0, 12), (12, 12)]),
    submit(8, OUT, 0, ep=0, number=0xFFFFFFFF),
]
RETURNS = [
    submitted(1, 18, data=b"x" * 18),
    submitted(2, 31),
    submitted(3, 100, data=b"y" * 100),
    unlinked(5, -104),
    submitted(6, 24, packets=[(0, 8, 8), (8, 8, 8), (16, 8, 8)]),
    submitted(7, 15, data=b"z" * 15, packets=[(0, 12, 3), (12, 12, 12)], errors=1),
    submitted(8, 0, status=-32),
]


def check() -> UsbipCheck:
    return UsbipCheck(DEVID, is_source=True)


def through(look: Look, text: bytes, size: int) -> bytes:
    """What comes out when the stream arrives in parts of `size` bytes, as the pump shows it."""
    out, waiting = b"", bytearray()
    for at in range(0, len(text), size):
        waiting += text[at : at + size]
        cleared = look(waiting)
        out += waiting[:cleared]
        del waiting[:cleared]
    return out + waiting


@pytest.mark.parametrize("size", [1, 7, 48, 1000, 1 << 16])
def test_what_kernels_send_goes_through_unchanged(size: int) -> None:
    looks = check()
    assert through(looks.commands, b"".join(COMMANDS), size) == b"".join(COMMANDS)
    assert looks.outstanding == len(COMMANDS)
    assert through(looks.returns, b"".join(RETURNS), size) == b"".join(RETURNS)
    assert (looks.outstanding, looks.why) == (0, "")


def test_a_part_of_a_header_or_of_a_packet_does_not_go_on() -> None:
    looks = check()
    assert looks.commands(bytearray(submit(1, OUT, 8)[:47])) == 0
    assert looks.commands(bytearray(submit(1, OUT, 8)[:50])) == 50  # data does
    assert looks.commands(bytearray(b"d" * 6 + submit(2, IN, 8, packets=[(0, 8)])[:63])) == 54
    assert looks.commands(bytearray(submit(2, IN, 8, packets=[(0, 8)])[48:])) == 16


def test_flags_about_the_memory_of_the_other_kernel_are_cleared() -> None:
    asked = bytearray(submit(1, IN, 8, flags=0xFFFFFFFF))
    assert check().commands(asked) == 48
    # short is an error, soon, for UHCI, empty packet, no interrupt, direction, in pieces
    assert struct.unpack_from(">I", asked, 20)[0] == 0x402E3
    assert asked[:20] + asked[24:] == submit(1, IN, 8)[:20] + submit(1, IN, 8)[24:]


def table_of(number: int, size: int = 1) -> list[tuple[int, int]]:
    return [(at * size, size) for at in range(number)]


@pytest.mark.parametrize(
    ("commands", "why"),
    [
        (submit(1, IN, 8, devid=DEVID + 1), "a command is for another device"),
        (unlink(1, 1, devid=0), "a command is for another device"),
        (submit(1, 2, 8), "a command has an impossible endpoint"),
        (submit(1, IN, 8, ep=16), "a command has an impossible endpoint"),
        (submit(1, IN, 8)[:3] + b"\3" + submit(1, IN, 8)[4:], "an unknown command"),
        (submit(1, IN, TRANSFER_MAX + 1), "a transfer is too long"),
        (submit(1, OUT, 0xFFFFFFFF, data=b""), "a transfer is too long"),
        (
            submit(1, IN, 9000, packets=table_of(PACKETS_MAX + 1)),
            "a transfer has too many packets",
        ),
        (submit(1, IN, 8) * 2, "a sequence number is used twice"),
        (submit(1, IN, 8) + unlink(1, 1), "a sequence number is used twice"),
        (submit(1, IN, 8, packets=[(0, 4), (4, 5)]), "a packet is outside its transfer"),
        (submit(1, IN, 8, packets=[(0xFFFFFFFF, 1)]), "a packet is outside its transfer"),
        (
            b"".join(submit(n, IN, 0) for n in range(COMMANDS_MAX + 1)),
            "too many commands have no return yet",
        ),
        (
            b"".join(submit(n, IN, TRANSFER_MAX) for n in range(BYTES_MAX // TRANSFER_MAX + 1)),
            "the transfers under way are too long together",
        ),
    ],
)
def test_commands_that_no_kernel_sends_are_refused(commands: bytes, why: str) -> None:
    for size in (48, 1 << 16):
        looks = check()
        with pytest.raises(RefusedError, match=f"^{why}$"):
            through(looks.commands, commands, size)
        assert looks.why == why
        with pytest.raises(RefusedError):  # for good, in both directions
            looks.returns(bytearray(48))


def test_what_is_right_at_a_bound_goes_through() -> None:
    looks = check()
    for each in (
        submit(1, IN, TRANSFER_MAX, ep=15),
        submit(2, IN, PACKETS_MAX, packets=table_of(PACKETS_MAX)),
        submit(3, OUT, 8, packets=[(8, 0), (0, 8)]),
    ):
        assert through(looks.commands, each, 1 << 16) == each
    many = check()
    for number in range(COMMANDS_MAX):
        many.commands(bytearray(submit(number, IN, 0)))
    many.returns(bytearray(submitted(77, 0)))
    many.commands(bytearray(submit(5000, IN, 0)))
    full = check()
    for number in range(BYTES_MAX // TRANSFER_MAX):
        full.commands(bytearray(submit(number, IN, TRANSFER_MAX)))
    full.returns(bytearray(submitted(0, 0)))
    full.commands(bytearray(submit(9, IN, TRANSFER_MAX)))


BEGINNING = submit(1, IN, 8)


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(submit(7, OUT, 48, data=BEGINNING), id="for an endpoint that is not there"),
        pytest.param(submit(7, OUT, 12, data=unlink(1, 1)[:12]), id="as short as can be"),
        pytest.param(
            submit(7, IN, 8, number=3) + struct.pack(">IIII", 1, 0, DEVID, 0),
            id="a table where none is read",
        ),
        pytest.param(
            submit(7, OUT, 8, number=3) + struct.pack(">IIII", 2, 0, DEVID, 0),
            id="a table behind data",
        ),
        pytest.param(
            submit(7, OUT, 4, data=b"\0\0\0\1") + submit(DEVID, IN, 8),
            id="on into the next header",
        ),
    ],
)
def test_data_that_begins_as_a_command_is_refused(commands: bytes) -> None:
    for size in (1, 1 << 16):
        with pytest.raises(RefusedError, match=r"^data begins as a command$"):
            through(check().commands, commands, size)


def test_data_that_only_looks_like_a_command_goes_through() -> None:
    another_device = submit(1, IN, 8, devid=DEVID + 1)
    a_return = submitted(1, 8)[:8] + struct.pack(">I", DEVID) + bytes(36)
    later = b"." * 4 + BEGINNING
    for number, data in enumerate((another_device, a_return, later, BEGINNING[:11])):
        asked = submit(100 + number, OUT, len(data), data=data)
        assert through(check().commands, asked + unlink(1, 1), 5) == asked + unlink(1, 1)


@pytest.mark.parametrize(
    ("returns", "why"),
    [
        (submitted(99, 0), "a return that no command waits for"),
        (submitted(1, 8, data=b"x" * 8) * 2, "a return that no command waits for"),
        (unlinked(1), "a return that no command waits for"),
        (submitted(4, 0), "a return that no command waits for"),
        (submit(1, IN, 8, devid=0), "an unknown return"),
        (submitted(1, 9), "a return has more bytes than were asked for"),
        (submitted(1, 0xFFFFFFFF), "a return has more bytes than were asked for"),
        (submitted(2, 9), "a return has more bytes than were asked for"),
        (submitted(1, 0, number=1), "a return has another number of packets than its command"),
        (submitted(3, 0, number=0), "a return has another number of packets than its command"),
        (submitted(3, 0, number=3), "a return has another number of packets than its command"),
        (submitted(3, 0, number=2, errors=3), "a return has more errors than packets"),
        (submitted(1, 0, status=1), "a return has an impossible status"),
        (submitted(1, 0, status=-4096), "a return has an impossible status"),
        (unlinked(4, 7), "a return has an impossible status"),
        (
            submitted(3, 8, data=b"x" * 8, packets=[(0, 4, 4), (5, 4, 4)]),
            "a packet is outside its transfer",
        ),
        (
            submitted(3, 8, data=b"x" * 8, packets=[(0, 4, 5), (4, 4, 3)]),
            "a packet has more bytes than were asked for",
        ),
        (
            submitted(3, 7, data=b"x" * 7, packets=[(0, 4, 4), (4, 4, 4)]),
            "packets have another length than their transfer",
        ),
        (
            submitted(3, 8, data=b"x" * 8, packets=[(0, 4, 4), (4, 4, 3)]),
            "packets have another length than their transfer",
        ),
    ],
)
def test_returns_that_answer_no_command_are_refused(returns: bytes, why: str) -> None:
    asked = [
        submit(1, IN, 8),
        submit(2, OUT, 8),
        submit(3, IN, 8, packets=[(0, 4), (4, 4)]),
        unlink(4, 1000),
    ]
    for size in (1, 48, 1 << 16):
        looks = check()
        assert through(looks.commands, b"".join(asked), 1 << 16)
        with pytest.raises(RefusedError, match=f"^{why}$"):
            through(looks.returns, returns, size)


def test_a_transfer_that_was_taken_back_has_no_return() -> None:
    looks = check()
    looks.commands(bytearray(submit(1, IN, 8) + submit(2, IN, 8) + unlink(3, 1) + unlink(4, 1)))
    looks.returns(bytearray(unlinked(3, -104)))
    assert looks.outstanding == 2
    looks.returns(bytearray(unlinked(4)))  # a second time
    looks.returns(bytearray(submitted(2, 8, data=b"x" * 8)))
    with pytest.raises(RefusedError, match="no command waits for"):
        looks.returns(bytearray(submitted(1, 0)))


LATE = [
    submitted(1, 5, data=b"x" * 5),
    submitted(2, 8),
    submitted(3, 7, data=b"z" * 7, packets=[(0, 4, 3), (4, 4, 4)]),
]


@pytest.mark.parametrize("size", [1, 7, 48, 1 << 16])
def test_a_return_that_comes_after_that_of_its_unlinking_is_taken_out(size: int) -> None:
    """vhci-hcd has given the transfer back by then, and would end the connection."""
    asked = [
        submit(1, IN, 8),
        submit(2, OUT, 8),
        submit(3, IN, 8, packets=[(0, 4), (4, 4)]),
        submit(4, IN, 8),
        *(unlink(number + 10, number) for number in (1, 2, 3)),
    ]
    last = submitted(4, 8, data=b"y" * 8)
    looks = check()
    looks.commands(bytearray(b"".join(asked)))
    came = b"".join(map(unlinked, (11, 12, 13)))
    assert through(looks.returns, came + b"".join(LATE) + last, size) == came + last
    assert looks.outstanding == 0
    for late in LATE:  # each once
        with pytest.raises(RefusedError, match="no command waits for"):
            again = check()
            again.commands(bytearray(b"".join(asked)))
            through(again.returns, came + late + late, size)


def test_no_return_is_late_from_the_beginning() -> None:
    with pytest.raises(RefusedError, match="no command waits for"):
        check().returns(bytearray(submitted(0, 0)))


def test_a_transfer_that_was_unlinked_in_time_returns_never() -> None:
    looks = check()
    looks.commands(bytearray(submit(1, IN, 8) + unlink(2, 1)))
    looks.returns(bytearray(unlinked(2, -104)))
    with pytest.raises(RefusedError, match="no command waits for"):
        looks.returns(bytearray(submitted(1, 0)))


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (submitted(1, 9), "a return has more bytes than were asked for"),
        (submitted(1, 0, number=1), "a return has another number of packets than its command"),
        (unlinked(1), "a return that no command waits for"),
    ],
)
def test_a_late_return_is_checked_like_any_other(late: bytes, why: str) -> None:
    looks = check()
    looks.commands(bytearray(submit(1, IN, 8) + unlink(2, 1)))
    looks.returns(bytearray(unlinked(2)))
    with pytest.raises(RefusedError, match=f"^{why}$"):
        looks.returns(bytearray(late))


def test_the_last_late_returns_are_known() -> None:
    numbers = range(1, LATE_MAX + 2)
    looks = check()
    for number in numbers:
        looks.commands(bytearray(submit(number, IN, 8) + unlink(1000 + number, number)))
        looks.returns(bytearray(unlinked(1000 + number)))
    for number in numbers[1:]:
        assert through(looks.returns, submitted(number, 0), 48) == b""
    with pytest.raises(RefusedError, match="no command waits for"):
        looks.returns(bytearray(submitted(1, 0)))


def test_what_is_taken_back_by_the_last_command_is_forgotten_with_it_alone() -> None:
    looks = check()
    looks.commands(bytearray(submit(1, IN, 8) + submit(2, IN, 8) + unlink(3, 1)))
    looks.returns(bytearray(unlinked(3, -104)))
    assert looks.outstanding == 1
    looks.returns(bytearray(submitted(2, 8, data=b"x" * 8)))
    assert looks.outstanding == 0


def test_an_unlink_takes_no_unlink_back() -> None:
    looks = check()
    looks.commands(bytearray(unlink(1, 2) + unlink(2, 1)))
    looks.returns(bytearray(unlinked(1)))
    looks.returns(bytearray(unlinked(2)))
    assert looks.outstanding == 0


async def test_a_pump_with_a_check_moves_both_directions(pairs: Pairs) -> None:
    """socket - pump - ring - pump - socket, in a ring that is smaller than one transfer."""
    one, two = await pairs.channels(12, 10)
    commands = b"".join(COMMANDS) + submit(50, OUT, 300_000)
    commands += submit(60, IN, 50_000) + unlink(61, 60) + submit(62, IN, 8)
    returns = b"".join(RETURNS) + submitted(50, 300_000) + unlinked(61)
    late = submitted(60, 50_000, data=b"." * 50_000)
    last = submitted(62, 8, data=b"l" * 8)
    more, answer = submit(63, IN, 8), submitted(63, 8, data=b"m" * 8)
    host, source_end = socket.socketpair()
    vhci, target_end = socket.socketpair()
    source, target = UsbipCheck(DEVID, is_source=True), UsbipCheck(DEVID, is_source=False)
    results: dict[str, PumpResult] = {}

    async def run(name: str) -> None:
        channel, end, looks = {
            "source": (one, source_end, source),
            "target": (two, target_end, target),
        }[name]
        results[name] = await pump(channel, end.fileno(), end.fileno(), check=looks)
        end.close()

    with trio.fail_after(PATIENCE):
        kernel = {
            end: trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (host, vhci)
        }
        async with trio.open_nursery() as pumps:
            pumps.start_soon(run, "source")
            pumps.start_soon(run, "target")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel[vhci].send_all, commands)
                nursery.start_soon(receives, kernel[host], commands)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel[host].send_all, returns + late + last)
                nursery.start_soon(receives, kernel[vhci], returns + last)
            # And again: nothing of what was taken out is left in between.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel[vhci].send_all, more)
                nursery.start_soon(receives, kernel[host], more)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel[host].send_all, answer)
                nursery.start_soon(receives, kernel[vhci], answer)
            assert (source.outstanding, target.outstanding) == (0, 0)
            await kernel[host].aclose()
            assert await kernel[vhci].receive_some() == b""
            await kernel[vhci].aclose()
    assert results == {
        "source": (len(returns + last + answer), len(commands + more), Why.INPUT_ENDED, 0),
        "target": (len(commands + more), len(returns + last + answer), Why.PEER_CLOSED, 0),
    }


@pytest.mark.parametrize("is_source", [True, False])
async def test_what_the_other_vm_may_not_send_reaches_no_kernel(
    pairs: Pairs, is_source: bool
) -> None:
    one, two = await pairs.streams(16, 16)
    kernel, end = socket.socketpair()
    looks = UsbipCheck(DEVID, is_source=is_source)
    good, bad = (submit(1, OUT, 8), submit(1, IN, 8)) if is_source else (b"", submitted(1, 0))
    with kernel, end, trio.fail_after(PATIENCE):
        await two.send_all(good + bad + bytes(1000))
        result = await pump(one._channel, end.fileno(), end.fileno(), check=looks)
        end.close()
        assert (result.why, result.error, result.bytes_to_fd) in [
            (Why.REFUSED, 0, 0),
            (Why.REFUSED, 0, len(good)),
        ]
        assert looks.why
        got = b""
        while more := kernel.recv(4096):
            got += more
        assert got == good[: len(got)]
        assert await two.receive_some() == b""  # and its channel is closed


async def test_what_was_cleared_is_written_also_when_the_input_has_ended(pairs: Pairs) -> None:
    """More than a pipe takes, less than the pump copies at once."""
    one, two = await pairs.streams(18, 18)
    asked = submit(1, OUT, 100_000)
    await two.send_all(asked)
    results: list[PumpResult] = []

    async def pumping(fd_in: int, fd_out: int) -> None:
        looks = UsbipCheck(DEVID, is_source=True)
        results.append(await pump(one._channel, fd_in, fd_out, check=looks))

    ended = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    with pipe() as (out, into), trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumping, ended, into)
            assert await two.receive_some() == b""
            assert await trio.to_thread.run_sync(read_all, out, len(asked)) == len(asked)
    os.close(ended)
    assert results == [(0, len(asked), Why.INPUT_ENDED, 0)]


async def test_an_output_that_goes_away_after_a_command_ends_a_checked_pump(pairs: Pairs) -> None:
    one, two = await pairs.streams(16, 16)
    command = submit(1, OUT, 31)
    results: list[PumpResult] = []

    async def pumping(fd_in: int, fd_out: int) -> None:
        looks = UsbipCheck(DEVID, is_source=False)
        results.append(await pump(one._channel, fd_in, fd_out, check=looks))

    output, into = os.pipe2(os.O_CLOEXEC)
    with pipe() as (words, say), trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumping, words, into)
            os.write(say, command)
            assert await receive_exactly(two, len(command)) == command
            os.close(output)
    os.close(into)
    assert results == [(len(command), 0, Why.OUTPUT_FAILED, errno.EPIPE)]
