"""A call goes through two pumps: every byte, every end, and the exit status."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_protocol import call_frames as frames
from pedos_vchan.call_pump import CallEnd, CallPump, EventKind
from pedos_vchan.call_pump import Event as Told
from pedos_vchan.stream import VchanStream

from tests.patience import PATIENCE

from .calling_pair import (
    CALL,
    ORDER,
    Call,
    Plumbing,
    channels,
    each_kind,
    fill,
    is_closed,
    plumb,
    read,
    read_all,
    write,
)
from .test_stream import receive_exactly

if TYPE_CHECKING:
    from .conftest import Pairs

KIB = 1024
MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("modest")


@each_kind
@pytest.mark.parametrize("order", [12, ORDER, 20])
async def test_a_filter_s_input_output_and_status_arrive(
    pairs: Pairs, kind: Plumbing, order: int
) -> None:
    sent, answer, words = (random.Random(seed).randbytes(2 * MIB + seed) for seed in (1, 2, 3))
    got = {}

    async def keep(name: str, fd: int) -> None:
        got[name] = await read_all(fd)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs, order), kind)
            ends = call.ends

            async def feed(fd: int, data: bytes) -> None:
                await write(fd, data)
                ends.close(fd)

            async with trio.open_nursery() as programs:
                programs.start_soon(feed, ends.stdin, sent)
                programs.start_soon(keep, "stdin", ends.service_stdin)
                programs.start_soon(feed, ends.service_stdout, answer)
                programs.start_soon(keep, "stdout", ends.stdout)
                programs.start_soon(feed, ends.service_stderr, words)
                programs.start_soon(keep, "stderr", ends.stderr)
            call.service.exit("exited", 3)
            caller, service = await call.over()
    assert got == {"stdin": sent, "stdout": answer, "stderr": words}
    assert (
        caller
        == service
        == CallEnd("exited", 3, "", len(sent), len(answer), len(words), is_reusable=True)
    )
    assert call.caller.counts() == (len(sent), len(answer), len(words))


async def test_what_a_call_tells_while_it_runs(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs))
            await call.told("caller", Told(EventKind.STARTED))
            for number in (15, 1, 64):
                call.caller.signal(number)
                await call.told("service", Told(EventKind.SIGNAL, number))
            call.ends.close(call.ends.stdin)
            await call.told("service", Told(EventKind.STDIN_ENDED, 1))
            call.service.main_exited(7)
            await call.told("caller", Told(EventKind.MAIN_EXITED, 7))
            call.ends.close(call.ends.service_stdout)
            await call.told("service", Told(EventKind.STDOUT_ENDED, 1))
            call.ends.close(call.ends.service_stderr)
            call.service.exit("exited", 7)
            await call.told("caller", Told(EventKind.EXITED))
            await call.over()


@each_kind
async def test_a_channel_carries_one_call_after_the_other(pairs: Pairs, kind: Plumbing) -> None:
    """As far as a caller goes: it begins the next while the service's side may not listen yet."""
    caller, service = await channels(pairs)

    async def serve(number: int) -> None:
        stdin, stdout = plumb(kind), plumb(kind)
        pump = CallPump(service, "service", bytes([number]) * 16)
        pump.exit("exited", number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run, stdin[1], stdout[0], -1)
            os.set_blocking(stdin[0], False)
            await write(stdout[1], await read(stdin[0], 5))
            os.close(stdin[0])
            os.close(stdout[1])

    with trio.fail_after(PATIENCE):
        for number in range(20):
            async with trio.open_nursery() as nursery:
                stdin, stdout = plumb(kind), plumb(kind)
                os.write(stdin[1], b"hello")
                os.close(stdin[1])
                pump = CallPump(caller, "caller", bytes([number]) * 16)
                nursery.start_soon(serve, number)
                end = await pump.run(stdin[0], stdout[1], -1)
                assert end == CallEnd("exited", number, "", 5, 5, 0, is_reusable=True)
                assert os.read(stdout[0], 99) == b"hello"
                os.close(stdout[0])
    assert not caller.closed
    assert not service.closed


async def test_a_service_that_never_starts_is_told_as_such(pairs: Pairs) -> None:
    one, two = await channels(pairs)
    stdin, stdout = plumb("pipes"), plumb("pipes")
    told: list[Told] = []
    os.write(stdin[1], b"in vain")
    caller = CallPump(one, "caller", CALL, told.append)
    service = CallPump(two, "service", CALL)
    service.exit("not_found", 127, "no service qubes.Nothing here")
    ends = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run, -1, -1, -1)
            ends.append(await caller.run(stdin[0], stdout[1], -1))
    assert ends[0].kind == "not_found"
    assert (ends[0].status, ends[0].text) == (127, "no service qubes.Nothing here")
    assert ends[0].is_reusable
    assert told == [Told(EventKind.EXITED)]
    assert os.read(stdout[0], 1) == b""
    os.close(stdin[1])
    os.close(stdout[0])


@each_kind
async def test_a_closed_stdout_reaches_the_service_and_the_call_goes_on(
    pairs: Pairs, kind: Plumbing
) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            call.ends.close(call.ends.stdout)
            await is_closed(call.ends.service_stdout)
            await write(call.ends.service_stderr, b"still here")
            assert await read(call.ends.stderr, 10) == b"still here"
            await write(call.ends.stdin, b"and here")
            assert await read(call.ends.service_stdin, 8) == b"and here"
            call.ends.close(call.ends.service_stderr)
            call.service.exit("exited", 0)
            caller, service = await call.over()
    assert (caller.kind, caller.status, caller.is_reusable) == ("exited", 0, True)
    assert service.is_reusable


def is_waiting(thread: int, fd: int) -> bool:
    """Whether this thread of ours is in a system call about fd."""
    with open(f"/proc/self/task/{thread}/syscall") as file:
        return file.read().split()[1:2] == [hex(fd)]


async def test_a_service_that_is_writing_finds_a_broken_pipe(pairs: Pairs) -> None:
    """As in a pipeline: a reset connection is what programs complain of."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), "sockets")
            writing = call.ends.service_stdout
            await fill(writing)
            os.set_blocking(writing, True)
            errors: list[OSError] = []

            thread: list[int] = []

            def write_more() -> None:
                thread.append(threading.get_native_id())
                try:
                    while True:
                        os.write(writing, bytes(4096))
                except OSError as error:
                    errors.append(error)

            async with trio.open_nursery() as programs:
                programs.start_soon(trio.to_thread.run_sync, write_more)
                while not thread or not is_waiting(thread[0], writing):
                    await trio.lowlevel.checkpoint()
                call.ends.close(call.ends.stdout)
            call.service.exit("exited", 0, now=True)
            await call.over()
    assert [type(error) for error in errors] == [BrokenPipeError]


async def test_what_nobody_reads_any_more_is_told_apart_from_an_end(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs))
            call.ends.close(call.ends.stdout)
            await call.told("service", Told(EventKind.STDOUT_ENDED, 0))
            call.ends.close(call.ends.service_stdin)
            await call.told("service", Told(EventKind.STDIN_ENDED, 0))
            call.ends.close(call.ends.service_stdout, call.ends.service_stderr)
            call.service.exit("exited", 1)
            await call.over()


@each_kind
async def test_a_closed_stdin_reaches_the_calling_program_and_the_call_goes_on(
    pairs: Pairs, kind: Plumbing
) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            call.ends.close(call.ends.service_stdin)
            await is_closed(call.ends.stdin)
            await call.told("service", Told(EventKind.STDIN_ENDED))
            await write(call.ends.service_stdout, b"done")
            assert await read(call.ends.stdout, 4) == b"done"
            call.ends.close(call.ends.service_stdout, call.ends.service_stderr)
            call.service.exit("exited", 1)
            caller, _ = await call.over()
    assert (caller.status, caller.is_reusable) == (1, True)


@each_kind
async def test_a_closed_stderr_takes_what_comes(pairs: Pairs, kind: Plumbing) -> None:
    """There is no word for it on the channel: the service's program never hears of it."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            held = await fill(call.ends.service_stderr)
            call.ends.close(call.ends.stderr)
            await write(call.ends.service_stderr, bytes(MIB))
            call.ends.close(call.ends.service_stdout, call.ends.service_stderr)
            call.service.exit("exited", 0)
            caller, _ = await call.over()
    assert (caller.kind, caller.status, caller.stderr) == ("exited", 0, held + MIB)
    assert caller.is_reusable


@each_kind
async def test_the_ends_of_streams_arrive_one_by_one(pairs: Pairs, kind: Plumbing) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            ends = call.ends
            ends.close(ends.stdin)
            assert await read(ends.service_stdin, 1) == b""
            await write(ends.service_stdout, b"x")
            assert await read(ends.stdout, 1) == b"x"
            ends.close(ends.service_stdout)
            assert await read(ends.stdout, 1) == b""
            await write(ends.service_stderr, b"y")
            assert await read(ends.stderr, 1) == b"y"
            ends.close(ends.service_stderr)
            assert await read(ends.stderr, 1) == b""
            assert not call.results
            call.service.exit("signalled", 9)
            caller, _ = await call.over()
    assert (caller.kind, caller.status) == ("signalled", 9)


@each_kind
async def test_a_blocked_stderr_does_not_stop_stdout(pairs: Pairs, kind: Plumbing) -> None:
    data = random.Random(4).randbytes(3 * MIB)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            ends = call.ends
            written = await fill(ends.service_stderr)
            async with trio.open_nursery() as programs:
                programs.start_soon(write, ends.service_stdout, data)
                assert await read(ends.stdout, len(data)) == data
            assert not select.select([], [ends.service_stderr], [], 0)[1]
            async with trio.open_nursery() as programs:
                programs.start_soon(read, ends.stderr, written + MIB)
                await write(ends.service_stderr, bytes(MIB))
            ends.close(ends.service_stdout, ends.service_stderr)
            call.service.exit("exited", 0)
            caller, _ = await call.over()
    assert (caller.stdout, caller.stderr) == (len(data), written + MIB)


@each_kind
@pytest.mark.parametrize("blocked", ["stdin", "stdout"])
async def test_each_stream_goes_on_while_another_is_blocked(
    pairs: Pairs, kind: Plumbing, blocked: str
) -> None:
    """A service may write much to stderr before it reads its stdin, as in a shell's pipeline."""
    data = random.Random(5).randbytes(MIB)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            ends = call.ends
            stuck = ends.stdin if blocked == "stdin" else ends.service_stdout
            held = await fill(stuck)
            others = {
                "stdin": (ends.stdin, ends.service_stdin),
                "stdout": (ends.service_stdout, ends.stdout),
                "stderr": (ends.service_stderr, ends.stderr),
            }
            reader = others.pop(blocked)[1]
            for source, sink in others.values():
                async with trio.open_nursery() as programs:
                    programs.start_soon(write, source, data)
                    assert await read(sink, len(data)) == data
            assert len(await read(reader, held)) == held
            ends.close(ends.service_stdout, ends.service_stderr)
            call.service.exit("exited", 0)
            caller, _ = await call.over()
    assert caller.is_reusable


async def test_data_leaves_room_in_the_ring_for_any_other_frame(pairs: Pairs) -> None:
    size = 1 << ORDER
    one, two = await channels(pairs)
    ours, program = socket.socketpair()
    program.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)
    assert program.send(bytes(size), socket.MSG_DONTWAIT) == size, "as much as fills the ring"
    with trio.fail_after(PATIENCE), program:
        async with VchanStream(two) as stream, trio.open_nursery() as nursery:
            pump = CallPump(one, "caller", CALL)
            nursery.start_soon(pump.run, ours.detach(), -1, -1)
            await receive_exactly(stream, frames.HEADER + len(CALL))
            header = await receive_exactly(stream, frames.HEADER)
            assert header[0] == frames.STDIN
            length = int.from_bytes(header[4:], "little")
            longest = frames.HEADER + 8 + frames.TEXT_MAX  # of the others: EXIT
            assert frames.HEADER + length + longest <= size
            nursery.cancel_scope.cancel()


async def test_descriptors_that_are_no_streams_are_refused_and_closed(pairs: Pairs) -> None:
    one, _ = await channels(pairs)
    null = os.open(os.devnull, os.O_RDONLY)
    reading, writing = os.pipe()
    for fds in ((null, -1, -1), (writing, -1, -1), (reading, -1, -1)):
        copies = [os.dup(fd) if fd >= 0 else -1 for fd in fds]
        pump = CallPump(one, "caller", CALL)
        if fds[0] == reading:
            copies = [-1, copies[0], -1]
        end = await pump.run(*copies)
        assert (end.kind, end.text) == ("problem", "a call's streams are FIFOs and stream sockets")
        for fd in copies:
            if fd >= 0:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(fd)
    one_packet, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        end = await CallPump(one, "caller", CALL).run(one_packet.detach(), -1, -1)
    assert end.kind == "problem"
    for fd in (null, reading, writing):
        os.close(fd)


@each_kind
async def test_descriptions_that_others_share_stay_blocking(pairs: Pairs, kind: Plumbing) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            one, two = await channels(pairs)
            stdin, stdout, source = plumb(kind), plumb(kind), plumb(kind)
            shared = [os.dup(fd) for fd in (stdin[0], stdout[1], source[0])]
            nursery.start_soon(CallPump(one, "caller", CALL).run, stdin[0], stdout[1], -1)
            nursery.start_soon(CallPump(two, "service", CALL).run, -1, source[0], -1)
            await write(source[1], b"x")
            os.set_blocking(stdout[0], False)
            assert await read(stdout[0], 1) == b"x"
            assert all(os.get_blocking(fd) for fd in shared)
            nursery.cancel_scope.cancel()
    assert all(os.get_blocking(fd) for fd in shared)
    for fd in (*shared, stdin[1], stdout[0], source[1]):
        os.close(fd)


async def test_one_socket_for_input_and_output_is_shut_down_half_by_half(pairs: Pairs) -> None:
    """As a socket service has it, and a program that calls with --use-stdin-socket."""
    with trio.fail_after(PATIENCE):
        one, two = await channels(pairs)
        program, ours = socket.socketpair()
        service, its = socket.socketpair()
        shared = ours.dup()  # another program has it open, too
        ends = []
        for each in (program, service):
            each.setblocking(False)
        async with trio.open_nursery() as nursery:

            async def run(pump: CallPump, end: socket.socket) -> None:
                ends.append(await pump.run(os.dup(end.fileno()), end.detach(), -1, shutdown=True))

            serving = CallPump(two, "service", CALL)
            nursery.start_soon(run, CallPump(one, "caller", CALL), ours)
            nursery.start_soon(run, serving, its)
            await write(program.fileno(), b"question")
            program.shutdown(socket.SHUT_WR)
            assert await read_all(service.fileno()) == b"question"
            await write(service.fileno(), b"answer")
            serving.exit("exited", 0)
            service.shutdown(socket.SHUT_WR)
            assert await read_all(program.fileno()) == b"answer"
        for each in (program, service, shared):
            each.close()
    assert [end.kind for end in ends] == ["exited", "exited"]
    assert all(end.is_reusable for end in ends)
