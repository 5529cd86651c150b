"""One task for many descriptors: whose turn it is, and what a turn may do to others."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from pedos_vchan.ready import ready

from tests.patience import PATIENCE


async def test_each_has_its_turn_until_it_is_removed() -> None:
    pairs = [socket.socketpair() for _ in range(40)]  # more than have it at once
    heard: dict[int, bytes] = {}

    def hear(number: int) -> None:
        heard[number] = pairs[number][0].recv(10)
        ready().remove(pairs[number][0].fileno())

    for number, (ours, theirs) in enumerate(pairs):
        ready().add(ours.fileno(), lambda number=number: hear(number))  # type: ignore[misc]
        theirs.send(b"%d" % number)
    with trio.fail_after(PATIENCE):
        while len(heard) < len(pairs):
            await trio.lowlevel.checkpoint()
    assert heard == {number: b"%d" % number for number in range(len(pairs))}
    for _, theirs in pairs:
        theirs.send(b"again")
    await trio.testing.wait_all_tasks_blocked()
    assert all(len(said) < 3 for said in heard.values())
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_a_turn_may_remove_another_one_that_is_ready() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    turns: list[int] = []

    def first_only(number: int) -> None:
        turns.append(number)
        for ours, _ in pairs:
            ready().remove(ours.fileno())

    for number, (ours, theirs) in enumerate(pairs):
        ready().add(ours.fileno(), lambda number=number: first_only(number))  # type: ignore[misc]
        theirs.close()
    with trio.fail_after(PATIENCE):
        while not turns:
            await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert len(turns) == 1
    for ours, _ in pairs:
        ours.close()


async def test_a_mistake_ends_the_turns_of_that_one_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    turns: list[bytes] = []

    def fail() -> None:
        turns.append(b"failed")
        raise LookupError("a mistake")

    ready().add(pairs[0][0].fileno(), fail)
    ready().add(pairs[1][0].fileno(), lambda: turns.append(pairs[1][0].recv(10)))
    pairs[0][1].send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    pairs[1][1].send(b"well")
    with trio.fail_after(PATIENCE):
        while len(turns) < 2:
            await trio.lowlevel.checkpoint()
    assert turns == [b"failed", b"well"]
    assert "a mistake" in caplog.text
    for each in pairs:
        each[0].close()
        each[1].close()
