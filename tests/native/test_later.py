"""Answers that handlers say after they have returned."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError
from pedos_vchan.later import Later
from pedos_vchan.peer import Peer

if TYPE_CHECKING:
    from .conftest import Pairs

Params = dict[str, Any]


class Owing:
    """Handlers that owe their answers, and what became of these."""

    def __init__(self) -> None:
        self.owed: list[Later] = []
        self.given_up = 0

    def later(self) -> Later:
        later = Later(self.give_up)
        self.owed.append(later)
        return later

    def give_up(self) -> None:
        self.given_up += 1

    async def at_once(self, _peer: Peer, _params: Params) -> Later:
        return self.later()

    async def after_a_wait(self, _peer: Peer, _params: Params) -> Later:
        await trio.lowlevel.checkpoint()
        return self.later()

    async def said_before(self, _peer: Peer, params: Params) -> Later:
        later = self.later()
        later.answer(params)
        return later

    async def the_same_again(self, _peer: Peer, _params: Params) -> Later:
        return self.owed[0]

    async def done(self, _peer: Peer, params: Params) -> Later:
        """Whose work cannot be undone any more when its asker gives up."""
        later = Later()
        later.cancelled = lambda: self.owed.append(later) or (later.answer(params) and None)
        return later


@contextlib.asynccontextmanager
async def asked(
    pairs: Pairs, method: str = "at_once", timeout: float = 60, **keywords: Any
) -> AsyncIterator[tuple[Owing, Peer, list[Params | CallError]]]:
    """An owing peer that was asked for `method`; the other one, and what it has heard."""
    owing, heard = Owing(), list[Params | CallError]()
    handlers = {
        f"test.{name}": getattr(owing, name)
        for name in ("at_once", "after_a_wait", "said_before", "the_same_again", "done")
    }
    one, other = await pairs.streams()
    async with trio.open_nursery() as nursery:
        client = Peer(one, program="client 1", handlers={}, name="client")
        server = Peer(other, program="served 1", handlers=handlers, name="served", **keywords)
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        client.ask(f"test.{method}", {"a": 1}, timeout=timeout, then=heard.append)
        await trio.testing.wait_all_tasks_blocked(0.01)
        yield owing, client, heard
        client.close()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


def code_of(heard: list[Params | CallError]) -> list[str]:
    return [each.code for each in heard if isinstance(each, CallError)]


@pytest.mark.parametrize("method", ["at_once", "after_a_wait"])
async def test_an_answer_is_said_once_by_whoever_knows_it(pairs: Pairs, method: str) -> None:
    async with asked(pairs, method) as (owing, _, heard):
        assert heard == []
        assert owing.owed[0].answer({"b": 2})
        assert not owing.owed[0].answer({"b": 3})
        assert not owing.owed[0].fail(CallError("busy", "no"))
        await settle()
        assert heard == [{"b": 2}]
    assert owing.given_up == 0


async def test_an_answer_that_is_known_before_is_sent_when_it_is_owed(pairs: Pairs) -> None:
    async with asked(pairs, "said_before") as (owing, _, heard):
        assert heard == [{"a": 1}]
        assert not owing.owed[0].answer()


async def test_an_answer_may_go_with_what_is_told_next(pairs: Pairs) -> None:
    async with asked(pairs) as (owing, client, heard):
        owing.owed[0].answer({}, more=True)
        await settle()
        assert heard == []
        with pytest.raises(CallError, match="not served here"):  # whatever is written next
            await client.call("test.nothing", {}, timeout=60)
        assert heard == [{}]


async def test_a_failure_is_said_as_that_of_any_handler(
    pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    async with asked(pairs) as (owing, client, heard):
        client.ask("test.at_once", {}, timeout=60, then=heard.append)
        await settle()
        owing.owed[0].fail(CallError("busy", "no room", {"left": 0}))
        owing.owed[1].fail(ZeroDivisionError("a mistake"))
        await settle()
    assert code_of(heard) == ["busy", "failed"]
    assert "a mistake" in caplog.text


async def test_an_answer_that_cannot_be_sent_is_a_failure(pairs: Pairs) -> None:
    async with asked(pairs) as (owing, _, heard):
        assert owing.owed[0].answer({"x": object()})
        await settle()
        assert code_of(heard) == ["failed"]


async def test_an_answer_is_said_in_the_words_of_the_others_version(pairs: Pairs) -> None:
    def result_in(version: int, method: str, result: Params) -> Params:
        return {"version": version, "method": method, **result}

    async with asked(pairs, result_in=result_in) as (owing, _, heard):
        owing.owed[0].answer({"b": 2})
        await settle()
        assert heard == [{"version": 2, "method": "test.at_once", "b": 2}]


async def test_one_answer_is_not_owed_for_two_requests(pairs: Pairs) -> None:
    async with asked(pairs) as (owing, client, heard):
        with pytest.raises(CallError, match="failed unexpectedly"):
            await client.call("test.the_same_again", {}, timeout=60)
        owing.owed[0].answer()
        await settle()
        assert heard == [{}]


@pytest.mark.parametrize("method", ["at_once", "after_a_wait"])
async def test_an_answer_that_is_forgotten_is_owed_until_the_deadline_alone(
    pairs: Pairs, autojump_clock: trio.testing.MockClock, method: str
) -> None:
    autojump_clock.autojump_threshold = 0.05  # what is said is on its way through the kernel
    async with asked(pairs, method, timeout=7) as (owing, client, heard):
        before = trio.current_time()
        await trio.sleep(6.5)
        assert (owing.given_up, heard) == (0, [])
        await trio.sleep(1)
        assert (owing.given_up, code_of(heard)) == (1, ["timeout"])
        assert trio.current_time() - before == pytest.approx(7.5, abs=0.1)
        assert not owing.owed[0].answer()  # too late
        # Its place is free, and the other side has been told so: no answer comes twice.
        client.ask("test.said_before", {}, timeout=60, then=heard.append)
        await settle()
        assert heard[1:] == [{}]


async def test_an_asker_that_gives_up_cancels_it(pairs: Pairs) -> None:
    async with asked(pairs) as (owing, client, heard):
        with trio.move_on_after(0):
            await client.call("test.at_once", {}, timeout=60)
        assert len(owing.owed) == 1  # cancelled before it has asked
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.call("test.at_once", {}, timeout=60))
            await settle()
            nursery.cancel_scope.cancel()
        await settle()
        assert owing.given_up == 1
        assert [each.is_over for each in owing.owed] == [False, True]
        assert owing.owed[0].answer()
        await settle()
        assert heard == [{}]


async def test_who_cannot_undo_it_any_more_says_so(pairs: Pairs) -> None:
    async with asked(pairs) as (owing, client, _):
        results = []

        async def call() -> None:
            results.append(
                await client.call("test.done", {"a": 1}, timeout=60, until_answered=True)
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await settle()
            nursery.cancel_scope.cancel()
        assert results == [{"a": 1}]
        assert owing.owed[1].is_over


async def test_a_mistake_in_what_follows_ends_nothing_else(
    pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    async with asked(pairs) as (owing, client, _):
        owing.owed[0].cancelled = lambda: {}["no such key"]
        client.close()
    assert "what follows a request that was given up" in caplog.text
    assert owing.owed[0].is_over


async def test_nothing_is_owed_any_more_when_the_connection_has_ended(pairs: Pairs) -> None:
    async with asked(pairs) as (owing, client, heard):
        client.close()
        await settle()
        assert code_of(heard) == ["unavailable"]
        assert owing.given_up == 1
        assert not owing.owed[0].answer()
