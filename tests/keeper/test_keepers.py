"""Which keeper an agent gives a call to, and what it makes of one that ends or lies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_agent.calls import keepers
from pedos_agent.calls.keepers import Keepers
from pedos_protocol.keeper_link import (
    AGENT,
    Ended,
    ForUser,
    Kill,
    Killed,
    NotFound,
    Packet,
    Problem,
    Run,
    Signal,
    build,
    parse,
)

from tests.lingering import Lingering, closing, until
from tests.patience import PATIENCE

from .keeper_client import CALL

RUN = Run(CALL, "test.Any", "+", "vault", "", False)

HUNG_UP = (
    "its keeper has hung up while it was being started: systemctl status pedos-run@root.service"
)


@contextlib.contextmanager
def listening(folder: Path, user: str = "root") -> Iterator[trio.socket.SocketType]:
    """Where the keeper of a user listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / f"{user}.sock"))
        listener.listen()
        yield trio.socket.from_stdlib_socket(listener)


async def test_who_has_no_keeper_is_told_what_to_do(tmp_path: Path) -> None:
    call = await Keepers(folder=tmp_path).run(RUN, "root", [])
    assert call.answer == Problem(
        "no services run as root here: as root, systemctl enable --now pedos-run@root.socket"
    )
    call = await Keepers(folder=tmp_path).run(RUN, "nobody-there", [])
    assert call.answer == Problem("there is no user nobody-there in this VM")


async def test_without_a_first_user_a_call_without_a_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "FIRST_UID", 987654)
    call = await Keepers(folder=tmp_path).run(RUN, None, [])
    assert isinstance(call.answer, Problem)
    assert call.answer.text.startswith("this VM has no user with the id 987654")


async def test_a_keeper_that_says_nothing_is_waited_for_and_named(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with listening(tmp_path) as listener:
        call = await Keepers(folder=tmp_path).run(RUN, "root", [0, 1])
        client, _ = await listener.accept()
        said = [await client.recv(5000) for _ in range(3)]
        client.close()
    assert call.answer == Problem(
        "the keeper of root says nothing within 8 s: systemctl status pedos-run@root.service"
    )
    assert said[1:] == [build(Signal(9)), b""], "it is to start nothing for nobody"


KILL_CALL = "0f" * 16


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([Killed()], ""),
        # It lacks something, or has no room for a call: it is asked again.
        ([Problem("no descriptor"), Problem("no room"), Killed()], "no descriptor"),
        ([Ended("exited", 0), Killed()], "it says something else"),
        ([b"\xc1", Killed()], "keeper"),
        # It was full, and has not read the question.
        ([None, b"", Killed()], "hang-ups: "),
        # It is of an older version, or cannot start.
        ([b""] * keepers.HANG_UPS_MAX, "hang-ups: not known"),
        ([None] * keepers.HANG_UPS_MAX, "hang-ups: not known"),
    ],
)
async def test_a_keeper_is_asked_to_end_a_call_until_it_has(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    answers: list[Packet | bytes | None],
    words: str,
) -> None:
    asked: list[bytes] = []

    async def serve() -> None:
        for each in answers:
            client, _ = await listener.accept()
            if each is not None:
                asked.append(await client.recv(5000))
            if each not in (None, b""):  # a packet without fields is an empty tuple
                await client.send(each if isinstance(each, bytes) else build(each))
            client.close()
        await listener.accept()
        raise AssertionError("it is asked once more")

    with listening(tmp_path) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await keepers.end_left(os.fsencode(tmp_path / "root.sock"), KILL_CALL)
            nursery.cancel_scope.cancel()
    assert asked == [build(Kill(KILL_CALL)) for each in answers if each is not None]
    if words.startswith("hang-ups: "):
        assert len(caplog.records) == 1 + ("not known" in words)
    else:
        assert words in caplog.text and len(caplog.records) == bool(words)


async def test_who_has_no_descriptor_left_does_not_take_a_call_for_ended(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, tries = keepers._connected, 0

    def connected(path: Path) -> socket.socket:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return connect(path)

    monkeypatch.setattr(keepers, "_connected", connected)
    await keepers.end_left(os.fsencode(tmp_path / "nobody.sock"), KILL_CALL)
    assert tries == 3, "there is no keeper, which is the end of all that it had"


@pytest.mark.parametrize(
    ("does", "answer", "asked"),
    [
        # It ends with the call unread: the next one takes it.
        ([None, NotFound("there is none")], "there is none", 2),
        ([None, None], "its keeper has ended before it was started", 2),
        # It has read the call: a service may run, and must not run twice.
        ([b"", NotFound("no")], HUNG_UP, 1),
    ],
)
async def test_a_keeper_that_ends_is_followed_only_by_one_that_cannot_run_it_again(
    tmp_path: Path,
    nursery: trio.Nursery,
    does: list[Packet | bytes | None],
    answer: str,
    asked: int,
) -> None:
    served = 0

    async def serve() -> None:
        nonlocal served
        for each in does:
            client, _ = await listener.accept()
            served += 1
            if each is None:
                await trio.lowlevel.wait_readable(client)
            else:
                await client.recv(5000)
            if each:
                await client.send(build(each))
            client.close()

    with listening(tmp_path) as listener:
        nursery.start_soon(serve)
        with trio.fail_after(PATIENCE):
            call = await Keepers(folder=tmp_path).run(RUN, "root", [0, 1])
        nursery.cancel_scope.cancel()
    assert isinstance(call.answer, NotFound | Problem)
    assert (call.answer.text, served) == (answer, asked)
    call.close()


async def test_what_a_keeper_passes_keeps_nobody_waiting(
    tmp_path: Path, nursery: trio.Nursery, lingering: Lingering
) -> None:
    """A keeper is a program of its user, who may have made another one of it."""

    async def serve() -> None:
        client, _ = await listener.accept()
        await client.recv(5000)
        lingering.pass_by(client._sock, build(NotFound("there is none")))
        client.close()

    with listening(tmp_path) as listener:
        nursery.start_soon(serve)
        with trio.fail_after(PATIENCE):
            call = await Keepers(folder=tmp_path).run(RUN, "root", [0, 1])
    assert call.answer == Problem("its keeper does not keep to the protocol: NotFound is no answer")
    await until(lambda: closing() == 1)
    lingering.release()
    await until(lambda: not closing())


async def test_the_keeper_of_the_forced_user_confirms_it(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    seen = []

    async def serve(user: str, answer: Packet) -> None:
        with listening(tmp_path, user) as listener:
            client, _ = await listener.accept()
            seen.append(parse(await client.recv(5000), AGENT))
            await client.send(build(answer))
            client.close()

    nursery.start_soon(serve, "root", ForUser("daemon"))
    nursery.start_soon(serve, "daemon", NotFound("there is none"))
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(PATIENCE):
        call = await Keepers(folder=tmp_path).run(RUN, "root", [0, 1])
    assert call.answer == NotFound("there is none")
    call.close()
    assert seen == [RUN, RUN._replace(is_forced=True)]
