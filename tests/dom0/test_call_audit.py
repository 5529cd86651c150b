"""Calls that a VM makes without end: first in full, then in sums that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import trio
from pedos_dom0.access.callers import desktop_user
from pedos_dom0.audit import call_sum
from pedos_dom0.audit.allowance import LINE_SECONDS, LINES, OWED_MAX
from pedos_dom0.audit.call_sum import Called, CallSum
from pedos_dom0.audit.call_throttle import (
    CALL_INTERVAL,
    CALL_LINES,
    FIRSTS_MAX,
    KNOWN_MAX,
    LINES_PER_CALL,
    CallThrottle,
)
from pedos_dom0.audit.log import LINE_MAX, _line, make_record
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.calling import Calling, calling, ended, lines, quiet, refused
from tests.dom0.fakes import Params

__all__ = ["calling"]

ECHO = Called("test.Echo", "+", "vault")
EVENTS = ("decision", "call", "call_ended")


def few_lines(calling: Calling, calls: int = 2) -> None:
    """Lines for so many calls; the others are counted."""
    calling.world.state.call_throttle._after = LINES_PER_CALL * calls


async def call(calling: Calling, service: str = "test.Echo", status: int = 0, **more: Any) -> str:
    """One call from beginning to end; returns its id."""
    answer = await calling.work.call("vault", service, **more)
    await quiet()
    await ended(calling, status=status)
    return str(answer["call"])


def services(calling: Calling, event: str) -> list[str]:
    return [line["service"] for line in lines(calling, event)]


async def test_a_sum_names_what_was_called_how_often_and_how_it_ended(
    calling: Calling, autojump_clock: Clock
) -> None:
    few_lines(calling)
    for _ in range(2):
        await call(calling)
    ids = [await call(calling, status=status) for status in (0, 0, 3)]
    ids.append(await call(calling, argument="+page"))
    for event in EVENTS:
        assert services(calling, event) == ["test.Echo"] * 2, event
    assert lines(calling, "summed_up") == []
    await trio.sleep(CALL_INTERVAL + 1)  # nothing else happens
    (summed,) = lines(calling, "summed_up")
    assert summed["vm"] == "work"
    assert summed["events"] == dict.fromkeys(EVENTS, 4)
    assert summed["calls"] == [
        {
            "service": "test.Echo", "argument": "+", "target": "vault", "calls": 3,
            "outcomes": {"exited 0": 2, "exited 3": 1},
        },
        {
            "service": "test.Echo", "argument": "+page", "target": "vault", "calls": 1,
            "outcomes": {"exited 0": 1},
        },
    ]  # fmt: skip
    found = " ".join(summed["ids"]).split()
    assert found[0] == summed["first_request"] and summed["last_request"] in found
    assert found[1::2] == [each[:12] for each in ids]
    calling.assert_nothing_left()
    assert calling.world.state.call_throttle._known == {}


async def test_the_first_call_of_a_service_is_written_however_often_others_are_called(
    calling: Calling, autojump_clock: Clock
) -> None:
    few_lines(calling, 1)
    for _ in range(3):
        await call(calling)
    for _ in range(2):
        await call(calling, "test.User")
    for event in EVENTS[1:]:
        assert services(calling, event) == ["test.Echo", "test.User"], event
    await trio.sleep(CALL_INTERVAL + 1)
    for _ in range(2):
        await call(calling, "test.User")
    for event in EVENTS[1:]:
        assert services(calling, event)[2:] == ["test.User"], event
    await trio.sleep(2 * CALL_INTERVAL)  # and after a quiet one everything is written again
    await call(calling, "test.User")
    assert services(calling, "call_ended")[3:] == ["test.User"]
    first, second = lines(calling, "summed_up")
    assert [each["calls"] for each in first["calls"]] == [2, 1]
    assert [(each["service"], each["calls"]) for each in second["calls"]] == [("test.User", 1)]


async def test_names_that_start_nothing_hide_no_service_behind_them(
    calling: Calling, autojump_clock: Clock
) -> None:
    async def only_one(params: Params) -> None:
        if params["service"] != "test.Echo":
            raise CallError("not_found", "no such service")

    few_lines(calling, 0)
    calling.world.policy.set("* * work vault allow\n* * @adminvm @anyvm allow\n")
    calling.vault.agent.on["service.start"] = only_one
    for number in range(50):
        await calling.work.call("vault", f"test.No{number}")
        await trio.sleep(0.1)
    assert lines(calling, "call") == []
    for _ in range(2):
        await call(calling)
    assert services(calling, "call") == services(calling, "call_ended") == ["test.Echo"]
    await trio.sleep(CALL_INTERVAL + 1)
    (summed,) = lines(calling, "summed_up")
    assert [(each["service"], each["calls"]) for each in summed["calls"]] == [("test.Echo", 1)]
    assert summed["not_begun"] == {"calls": 50, "outcomes": {"not_found": 50}}
    assert "not_named" not in summed


async def test_a_call_that_ends_after_its_sum_has_its_end_in_the_next_one(
    calling: Calling, autojump_clock: Clock
) -> None:
    few_lines(calling, 1)
    await call(calling)
    await calling.work.call()
    await trio.sleep(CALL_INTERVAL + 1)
    await ended(calling, status=7)
    calling.world.state.call_throttle.flush_all()
    await trio.sleep(1)
    first, second = lines(calling, "summed_up")
    assert (first["calls"][0]["calls"], first["calls"][0]["outcomes"]) == (1, {})
    assert (second["calls"][0]["calls"], second["calls"][0]["outcomes"]) == (0, {"exited 7": 1})


async def test_what_dom0s_user_ends_is_written_with_who_did(
    calling: Calling, autojump_clock: Clock
) -> None:
    few_lines(calling, 1)
    await call(calling)
    answer = await calling.work.call()
    await quiet()
    await calling.world.client.call("call.end", call=answer["call"])
    await quiet()
    line = lines(calling, "call_ended")[-1]
    assert (line["call"], line["by"], line["kind"]) == (answer["call"], "dom0", "problem")


async def test_a_user_of_the_desktop_fills_no_log_with_ends_and_is_named_all_the_same(
    calling: Calling, autojump_clock: Clock
) -> None:
    few_lines(calling, 1)
    anna, state = desktop_user(1000), calling.world.state
    broker = calling.world.api.calls.broker
    await call(calling)
    for has_lines in (True, False):
        if not has_lines:
            for _ in range(LINES + OWED_MAX):
                state.audit_throttle._done.spend(anna.audited, trio.current_time())
        answer = await calling.work.call()
        await quiet()
        await calling.world.api.calls.end(anna, answer["call"])
        await quiet()
        assert (lines(calling, "call_ended")[-1].get("by") == anna.audited) or not has_lines
    assert len(lines(calling, "call_ended")) == 2
    assert len(broker.table) == 0
    await trio.sleep(CALL_INTERVAL + 1)
    (summed,) = lines(calling, "summed_up")
    assert summed["calls"][0]["outcomes"] == {f"problem, {anna.audited}": 1}


async def test_what_a_vm_may_call_leaves_the_log_to_what_it_is_denied(calling: Calling) -> None:
    few_lines(calling)
    for _ in range(40):
        await call(calling)
    assert len(lines(calling, "call_ended")) == 2
    await refused(calling.work, "untrusted")
    assert lines(calling, "decision")[-1]["verdict"] == "deny"
    calling.world.state.call_throttle.flush_all()  # as at the service's end
    await calling.world.kill()
    (summed,) = lines(calling, "summed_up")
    assert summed["calls"][0]["calls"] == 38
    await calling.world.start()


# The bounds


class Written:
    """An audit log that keeps nothing but sizes."""

    def __init__(self) -> None:
        self.lines: list[Params] = []
        self.size = 0

    def write(self, event: str, **fields: object) -> None:
        record = make_record(event, fields)
        self.size += len(_line(record))
        self.lines.append(record)


def flood(throttle: CallThrottle, kinds: int, calls: int, numbers: Iterator[int]) -> None:
    """As many calls of as many services, one after the other."""
    for number in range(calls):
        called = Called(f"test.{number % kinds}", f"+{number}", "vault")
        request = f"{next(numbers):012x}"
        for event in EVENTS:
            begun: dict[str, Any] = {"call_id": request, "has_begun": True}
            told = begun if event == "call" else {}
            if not throttle.counts(
                event, called, of="work", throttled=True, request=request, **told
            ):
                throttle.write(event, request=request, service=called.service)
        throttle.forget(request)


async def test_a_vm_writes_a_bounded_number_of_lines_whatever_it_calls(
    autojump_clock: Clock,
) -> None:
    written, numbers = Written(), iter(range(10**6))
    throttle = CallThrottle(written, trio.current_time)
    flood(throttle, 3, CALL_LINES, numbers)
    await trio.sleep(CALL_INTERVAL)
    throttle.flush_all()
    written.lines.clear()
    hours = 12
    intervals = round(hours * 3600 / CALL_INTERVAL)
    for _ in range(intervals):
        flood(throttle, 4 * FIRSTS_MAX, 100, numbers)
        await trio.sleep(CALL_INTERVAL)
    throttle.flush_all()
    most = intervals * (FIRSTS_MAX * LINES_PER_CALL + 1) + LINES
    assert len(written.lines) <= most
    assert intervals * FIRSTS_MAX * LINES_PER_CALL <= 1.3 * hours * 3600 / LINE_SECONDS
    assert len(throttle._heard["work"].pairs) <= 4 * FIRSTS_MAX


async def test_calls_that_never_end_are_remembered_up_to_a_bound() -> None:
    throttle = CallThrottle(Written(), trio.current_time)
    for number in range(KNOWN_MAX + 10):
        throttle.counts("call", ECHO, of="work", throttled=True, request=f"{number}")
    assert len(throttle._known) == KNOWN_MAX
    throttle.flush_all()


def test_a_sum_fits_into_a_line_whatever_it_names() -> None:
    summed = CallSum()
    for number in range(100):
        for other in range(100):
            service = f"{number:03}" + "s" * 252
            called = Called(service, f"+{other:03}" + "a" * 380, "@dispvm:" + "t" * 31)
            outcome = f"signalled {other}, dom0 (uid 4294967295)"
            request = f"{number * 100 + other:012}"
            summed.note("call_ended", request, is_new=True, call_id="c" * 32)
            for kind in (called, None):
                summed.began(kind)
                summed.ended(kind, outcome)
    fields = summed.fields()
    line = _line(make_record("summed_up", {"vm": "v" * 31, **fields, "seconds": 600.123}))
    assert len(line) < LINE_MAX - 256
    assert json.loads(line).items() >= fields.items()
    named = sum(each["calls"] for each in fields["calls"])
    assert named + fields["not_named"]["calls"] == 100 * 100
    assert len(" ".join(fields["ids"]).split()) == call_sum.IDS_MAX
    assert call_sum.IDS_MAX + fields["ids_left_out"] == 2 * 100 * 100


def test_arguments_hide_no_service_behind_them() -> None:
    summed = CallSum()
    for number in range(1000):
        summed.note("call", f"{number}")
        summed.began(Called(f"test.{number % 5}", f"+{number}", "vault"))
    hidden = Called("qubes.VMShell", "+", "vault")
    summed.began(hidden)
    summed.ended(hidden, "exited 0")
    *others, last = summed.fields()["calls"]
    assert last == {
        "service": "qubes.VMShell", "target": "vault", "calls": 1, "outcomes": {"exited 0": 1},
    }  # fmt: skip
    assert sum(each["calls"] for each in others) == 1000
    assert "not_named" not in summed.fields()
