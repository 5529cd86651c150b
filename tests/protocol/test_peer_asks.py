"""Requests whose answers no task waits for."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from pedos_protocol.connection import PENDING_MAX
from pedos_protocol.errors import CallError
from trio.abc import Clock

from .test_peer import two_peers

Answers = list[dict[str, Any] | CallError]


def codes(answers: Answers) -> list[object]:
    return [each.code if isinstance(each, CallError) else each for each in answers]


async def test_the_answer_and_the_refusal_are_told_once(autojump_clock: Clock) -> None:
    answers: Answers = []
    async with two_peers() as (client, _):
        client.ask("test.echo", {"a": 1}, timeout=5, then=answers.append)
        client.ask("test.busy", {}, timeout=5, then=answers.append)
        client.ask("test.forever", {}, timeout=5, then=answers.append)
        assert answers == []
        await trio.testing.wait_all_tasks_blocked()
        assert codes(answers) == [{"a": 1}, "busy"]
        await trio.sleep(6)
        await trio.sleep(6)
    assert codes(answers) == [{"a": 1}, "busy", "timeout"]


async def test_the_end_of_the_connection_is_an_answer() -> None:
    answers: Answers = []
    async with two_peers() as (client, _):
        client.ask("test.forever", {}, timeout=5, then=answers.append)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        assert codes(answers) == ["unavailable"]
        client.ask("test.echo", {}, timeout=5, then=answers.append)
        assert len(answers) == 1
        await trio.testing.wait_all_tasks_blocked()
    assert codes(answers) == ["unavailable", "unavailable"]


async def test_one_too_many_waits_for_its_place(autojump_clock: Clock) -> None:
    answers: Answers = []
    async with two_peers() as (client, _):
        for _ in range(PENDING_MAX):
            client.ask("test.forever", {}, timeout=5, then=answers.append)
        client.ask("test.echo", {}, timeout=60, then=answers.append)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        await trio.sleep(6)
    assert codes(answers) == ["timeout"] * PENDING_MAX + [{}]


async def test_what_is_given_up_is_answered_soon(autojump_clock: Clock) -> None:
    """Also what has not been sent yet; what was answered already is not heard of again."""
    answers: Answers = []
    async with two_peers() as (client, _):
        give_up = client.ask("test.forever", {}, timeout=60, then=answers.append)
        await trio.testing.wait_all_tasks_blocked()
        give_up()
        await trio.testing.wait_all_tasks_blocked()
        assert codes(answers) == ["timeout"]
        for _ in range(PENDING_MAX):
            client.ask("test.forever", {}, timeout=5, then=answers.append)
        answers.clear()
        client.ask("test.echo", {}, timeout=60, then=answers.append)()
        await trio.testing.wait_all_tasks_blocked()
        assert codes(answers) == ["timeout"]
        await trio.sleep(6)
    assert codes(answers) == ["timeout"] * (1 + PENDING_MAX)


async def test_a_mistake_in_what_follows_does_not_end_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(_answer: object) -> None:
        raise ZeroDivisionError

    async with two_peers() as (client, _):
        client.ask("test.echo", {}, timeout=5, then=wrong)
        await trio.testing.wait_all_tasks_blocked()
        assert await client.call("test.echo", {"a": 1}, timeout=5) == {"a": 1}
    (record,) = caplog.records
    assert "what follows the answer to test.echo" in record.getMessage()
