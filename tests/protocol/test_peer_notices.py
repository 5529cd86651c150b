"""Notices that are refused, that fail, or that are requests in a notice's shape."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from pedos_host.throttle import KEYS_MAX, LINES, MINUTE, Throttle
from pedos_protocol.events import Answer, ErrorAnswer, Notice, Request

from .test_peer import HANDLERS, Params, Peer, against_raw


@pytest.fixture(autouse=True)
def new_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pedos_vchan.serving.throttle", Throttle())


async def test_a_request_in_the_shape_of_a_notice_is_neither_done_nor_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = []

    async def attach(_peer: Peer, _params: Params) -> None:
        done.append("attach")

    handlers = {**HANDLERS, "device.attach": attach}
    async with against_raw(handlers=handlers, notices={}) as (raw, _):
        await raw.hello()
        for method in handlers:
            await raw.say(Notice(method, {}))
        await raw.say(Request(1, "test.echo", {"it": "goes on"}, 1000))
        assert await raw.hear() == Answer(1, {"it": "goes on"})
    assert not done
    assert not caplog.records


async def test_a_notice_in_the_shape_of_a_request_is_an_unknown_request() -> None:
    noted = []

    async def note(_peer: Peer, params: Params) -> None:
        noted.append(params)

    async with against_raw(handlers={}, notices={"test.note": note}) as (raw, _):
        await raw.hello()
        await raw.say(Request(1, "test.note", {}, 1000))
        answer = await raw.hear()
        assert isinstance(answer, ErrorAnswer)
        assert answer.code == "unknown_method"
        await raw.say(Notice("test.note", {"n": 1}))
        await trio.testing.wait_all_tasks_blocked()
    assert noted == [{"n": 1}]


async def test_a_notice_that_is_refused_is_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with against_raw() as (raw, _):
        await raw.hello()
        await raw.say(Notice("test.busy", {}))
        await trio.testing.wait_all_tasks_blocked()
    assert not caplog.records


@pytest.mark.parametrize("kind", ["notice", "request"])
async def test_failures_that_a_peer_causes_again_and_again_are_counted(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock, kind: str
) -> None:
    async with against_raw(name="work") as (raw, _):
        await raw.hello()

        async def fail(times: int) -> None:
            for number in range(times):
                if kind == "notice":
                    await raw.say(Notice("test.broken", {}))
                else:
                    await raw.say(Request(number, "test.broken", {}, 1000))
                    assert isinstance(await raw.hear(), ErrorAnswer)
            await trio.testing.wait_all_tasks_blocked()

        await fail(LINES + 7)
        assert len(caplog.records) == LINES
        assert all("ZeroDivisionError" in str(record.exc_info) for record in caplog.records)
        await trio.sleep(MINUTE)
        await fail(1)
        assert len(caplog.records) == LINES + 1
        assert "(7 more like it were left out)" in caplog.records[-1].message
    assert all("work: " in record.message for record in caplog.records)


async def test_one_peers_lines_are_not_taken_from_another_one() -> None:
    throttle = Throttle()
    for _ in range(5 * LINES):
        throttle.more("vault: x failed")
    assert throttle.more("vault: x failed") is None
    assert throttle.more("work: x failed") == ""


async def test_what_is_remembered_of_lines_is_bounded() -> None:
    throttle = Throttle()
    for number in range(3 * KEYS_MAX):
        assert throttle.more(f"{number}") == ""
    assert len(throttle._counts) <= KEYS_MAX
