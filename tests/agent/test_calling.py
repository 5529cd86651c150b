"""Calls of a VM's programs: what they ask for, and how each ends."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio
import trio.testing
from pedos_agent.calls import asking, callers, calling
from pedos_host.packets import PacketSocket
from pedos_protocol.call_link import (
    Call,
    Ended,
    Signal,
    Started,
)
from pedos_protocol.errors import CallError
from pedos_vchan.call_pump import CallPump

from tests.patience import PATIENCE

from .calling_world import CALL, Service, World, until_aborted

# How a call goes


async def test_a_program_gets_what_the_service_writes_and_how_it_exits(world: World) -> None:
    end, out, err = await world.run(written=b"there and back")
    assert (out, err) == (b"there and back", b"echo\n")
    assert end == Ended("exited", 3, 3, "", "", "", "a1")
    assert world.asked == [
        {
            "service": "work.Echo",
            "argument": "+x",
            "target": "vault",
            "user": None,
            "uid": os.getuid(),
        }
    ]
    [told] = world.ended()
    assert told["reusable"] and told["started_s"] is not None
    assert (told["stdin"], told["stdout"], told["stderr"]) == (14, 14, 5)


@pytest.mark.parametrize(("number", "said"), [(9, "the service was killed by SIGKILL"), (13, "")])
async def test_a_signal_is_named_but_that_of_a_pipe_without_a_reader(
    world: World, number: int, said: str
) -> None:
    async def die(service: Service, pump: CallPump) -> None:
        service.close()
        pump.exit("signalled", number)

    world.behave = die
    end, _, _ = await world.run()
    assert (end.kind, end.exit_status, end.text) == ("signalled", 128 + number, said)


async def test_one_connection_and_one_channel_serve_call_after_call(world: World) -> None:
    client = world.connect()
    for number in range(3):
        end, out, _ = await client.run(CALL, b"%d" % number)
        assert (end.exit_status, out) == (3, b"%d" % number)
        await world.until(world.theirs.idle)
        assert world.calls.channels.idle() == world.theirs.idle() == (16,)
    assert len({service.call for service in world.services}) == 3


async def test_the_agent_hangs_up_after_a_program_s_last_call(world: World) -> None:
    client = world.connect()
    await client.run(CALL, b"")
    end, out, _ = await client.run(CALL._replace(is_last=True), b"more")
    assert (end.exit_status, out) == (3, b"more")
    assert await client.hear() is None


async def test_the_start_is_said_before_the_end(world: World) -> None:
    client = world.connect()
    client.call()
    assert client.stream is not None
    await client.stream.send_eof()
    assert await client.hear() == Started(f"{17:032x}", "a1")
    assert isinstance(await client.hear(), Ended)


async def test_signals_reach_the_service_and_senseless_ones_nobody(world: World) -> None:
    client = world.connect()
    client.send(Signal(15))  # there is no call
    client.call()
    assert isinstance(await client.hear(), Started)
    for number in (0, 255, 10):
        client.send(Signal(number))
    await world.until(lambda: world.services[0].signals)
    assert world.services[0].signals == [10]


async def test_many_calls_at_once_do_not_mix(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one_of_many, world, b"%d" % number * 5000)
    assert len(world.ended()) == 8


async def one_of_many(world: World, data: bytes) -> None:
    end, out, _ = await world.run(written=data)
    assert (end.exit_status, out) == (3, data)


# How it does not go


async def test_a_denied_one_hears_that_and_the_request_alone(world: World) -> None:
    async def deny(_params: dict[str, Any]) -> dict[str, Any]:
        raise CallError("denied", "dom0's policy does not allow it", {"request": "b2"})

    world.answer = deny
    end, out, err = await world.run()
    assert (out, err) == (b"", b"")
    text = "denied: dom0's policy does not allow it"
    assert end == Ended("refused", 0, 126, text, "", "", "b2")
    assert not world.told


async def test_dom0_s_users_hear_the_rule_and_what_to_do(world: World) -> None:
    async def deny(_params: dict[str, Any]) -> dict[str, Any]:
        data = {"request": "b2", "rule": "50.policy:3", "text": "* * * * deny", "hint": "ask\x1b"}
        raise CallError("denied", "no\n", data)

    world.answer = deny
    end, _, _ = await world.run()
    assert end[3:] == ("denied: no_", "50.policy:3: * * * * deny", "ask_", "b2")


@pytest.mark.parametrize("code", ["not_found", "busy", "quota", "unavailable", "timeout", "failed"])
async def test_what_dom0_cannot_do_is_a_problem_with_words(world: World, code: str) -> None:
    async def fail(_params: dict[str, Any]) -> dict[str, Any]:
        raise CallError(code, "64 calls of this VM run, which is the most")

    world.answer = fail
    end, _, _ = await world.run()
    word = code.replace("_", " ")
    assert end[:4] == ("problem", 0, 125, f"{word}: 64 calls of this VM run, which is the most")


async def test_without_dom0_it_is_unavailable(world: World) -> None:
    world.calls.dom0 = None
    end, _, _ = await world.run()
    assert (end.kind, end.exit_status) == ("problem", 125)
    assert end.text == "unavailable: dom0's service is not reachable from this VM"


@pytest.mark.parametrize(
    "wrong",
    [
        CALL._replace(service="a b"),
        CALL._replace(service=""),
        CALL._replace(argument="x"),
        CALL._replace(argument="+/"),
        CALL._replace(target="no VM"),
        CALL._replace(target="@nothing"),
        CALL._replace(user="-x"),
    ],
)
async def test_what_is_no_name_is_refused_in_words_and_dom0_not_asked(
    world: World, wrong: Call
) -> None:
    end, _, _ = await world.run(wrong)
    assert (end.kind, end.exit_status) == ("problem", 125)
    assert end.text.startswith("usage: "), end.text
    assert not world.asked


async def test_a_program_of_another_version_is_told_so(world: World) -> None:
    end, _, _ = await world.run(CALL._replace(version=2))
    assert end.text == "usage: this agent speaks version 1 of the call socket, and not 2"


async def test_a_vm_that_does_not_connect_is_a_problem_and_told(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    async def grant(_params: dict[str, Any]) -> dict[str, Any]:
        await world.order("channel.listen", peer=3, port=40, left_order=14, right_order=14)
        return world.granted("1" * 32, 40, True)

    world.answer = grant
    client = world.connect()
    client.call()
    end = await client.end()  # its streams are closed in a thread, which this clock does not see
    assert end.exit_status == 125
    assert "did not connect within 10 s" in end.text
    [told] = world.ended()
    assert (told["kind"], told["reusable"]) == ("problem", False)
    assert world.calls.channels.idle() == ()


async def test_a_failure_of_the_agent_is_an_end_that_dom0_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(calling, "CallPump", fail)
    world.behave = until_aborted
    client = world.connect()
    client.call()
    end = await client.end()
    said = "failed: the call could not be carried: the agent of this VM failed"
    assert (end.exit_status, end.text) == (125, said)
    [told] = world.ended()
    assert (told["kind"], told["reusable"]) == ("problem", False)
    assert "a mistake of ours" in caplog.text


@pytest.mark.parametrize("failing", [("to_wire",), ("to_wire", "CallPump")], ids=len)
async def test_a_program_hears_an_end_whatever_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a mistake of ours")

    for name in failing:
        monkeypatch.setattr(calling, name, fail)
    world.behave = until_aborted  # it ends with its input, or as nothing comes
    client = world.connect()
    client.call()
    assert client.stream is not None
    await client.stream.send_eof()
    end = await client.end()
    assert (end.exit_status, end.text) == (125, "failed: the agent of this VM failed")
    assert not world.calls._running
    client.close()


async def test_the_end_of_the_other_vm_is_lost_and_never_a_success(world: World) -> None:
    async def vanish(service: Service, pump: CallPump) -> None:
        await service.stdout.send_all(b"some")
        await service.stdin.receive_some()
        await world.until(lambda: pump.counts().stdout)  # it is in the channel
        scope.cancel()

    scope = trio.CancelScope()
    serve = world._serve

    async def serve_until_cancelled(call: str, port: int, new: bool) -> None:
        with scope:
            await serve(call, port, new)

    world._serve = serve_until_cancelled  # type: ignore[method-assign]
    world.behave = vanish
    end, out, _ = await world.run(written=b"x")
    assert (end.kind, end.exit_status, out) == ("lost", 125, b"some")
    assert end.text.startswith("lost: ")
    assert not world.ended()[0]["reusable"]


# A program that goes away


async def test_one_that_goes_while_dom0_decides_withdraws_its_question(world: World) -> None:
    withdrawn = trio.Event()

    async def think(_params: dict[str, Any]) -> dict[str, Any]:
        try:
            await trio.sleep_forever()
        finally:
            withdrawn.set()
        return {}

    world.answer = think
    client = world.connect()
    client.call()
    await world.until(lambda: world.asked)
    client.close()
    with trio.fail_after(PATIENCE):
        await withdrawn.wait()
    assert not world.told


async def test_one_that_goes_as_dom0_allows_it_is_an_ordinary_aborted_call(world: World) -> None:
    async def grant_too_late(params: dict[str, Any]) -> dict[str, Any]:
        with trio.CancelScope(shield=True):
            await world.until(lambda: trio.current_effective_deadline() == -float("inf") or gone)
            return await world.grant(params)

    gone: list[bool] = []
    world.behave = until_aborted
    world.answer = grant_too_late
    client = world.connect()
    client.call()
    await world.until(lambda: world.asked)
    client.packets.close()
    gone.append(True)
    await world.until(world.ended)
    [told] = world.ended()
    assert (told["kind"], told["reusable"]) == ("aborted", True)
    assert world.calls.channels.idle() == (16,), "the next call has the channel"


async def test_one_that_goes_in_the_middle_aborts_the_service(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    assert isinstance(await client.hear(), Started)
    client.packets.close()  # its streams end with it, or later
    await world.until(world.ended)
    assert world.ended()[0]["kind"] == "aborted"
    await world.until(lambda: "CALLER_GONE" in world.services[0].events)


async def test_one_that_says_that_it_has_enough_still_hears_the_end(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    assert isinstance(await client.hear(), Started)
    client.packets.finish()
    end = await client.end()
    assert (end.kind, end.exit_status) == ("aborted", 125)


async def test_one_that_does_not_read_what_it_is_told_ends(world: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets = PacketSocket(ours)
    caller = callers._Caller(
        packets, 0, world.calls, world.nursery.start_soon, lambda _caller: None
    )
    with pytest.raises(BlockingIOError):
        while True:
            packets.send_now(b"x" * 1000)
    caller._started("0" * 32, "1")
    assert packets.fileno() < 0
    theirs.close()


# What dom0 ends


async def test_dom0_ends_a_call_with_its_own_words(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    said = await client.hear()
    assert isinstance(said, Started)
    kill = {"kind": "problem", "status": 0, "text": "dom0's user ended it"}
    await world.order("service.kill", call=said.call, **kill)
    end = await client.end()
    assert end[:4] == ("problem", 0, 125, "failed: dom0's user ended it")
    assert (world.ended()[0]["kind"], world.ended()[0]["text"]) == (
        kind_and_text := (
            "problem",
            "dom0's user ended it",
        )
    ), kind_and_text


@pytest.mark.parametrize("early", [False, True])
async def test_dom0_ends_a_call_whose_channel_never_comes(world: World, early: bool) -> None:
    kill = {"call": "1" * 32, "kind": "lost", "status": 0, "text": "the agent of vault is gone"}

    async def grant(_params: dict[str, Any]) -> dict[str, Any]:
        await world.order("channel.listen", peer=3, port=40, left_order=14, right_order=14)
        if early:  # dom0's two messages are read one right after the other
            await world.order("service.kill", **kill)
        return world.granted("1" * 32, 40, True)

    world.answer = grant
    client = world.connect()
    client.call()
    if not early:
        await world.until(lambda: world.calls._running)
        await trio.testing.wait_all_tasks_blocked()
        await world.order("service.kill", **kill)
    end = await client.end()
    assert end[:4] == ("lost", 0, 125, "lost: the agent of vault is gone")
    assert len(world.ended()) == 1
    await world.until(lambda: not world.calls.channels.idle())


async def test_a_kill_of_what_has_ended_does_nothing(world: World) -> None:
    for number in range(200):
        kill = {"kind": "problem", "status": 0, "text": "no"}
        await world.order("service.kill", call=f"{number:032x}", **kill)
    assert len(world.calls._killed_early) <= 64
    end, _, _ = await world.run()
    assert end.exit_status in (3, 125)


# What runs


async def test_dom0_hears_what_runs_page_by_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.calls.calls.RUNNING_PAGE_MAX", 2)
    world.behave = until_aborted
    for _ in range(3):
        client = world.connect()
        client.call()
        assert isinstance(await client.hear(), Started)
    first = await world.order("call.running", after=None)
    assert (len(first["calls"]), first["more"]) == (2, True)
    last = await world.order("call.running", after=first["calls"][-1]["call"])
    assert (len(last["calls"]), last["more"]) == (1, False)
    names = [each["call"] for each in first["calls"] + last["calls"]]
    assert names == sorted(service.call for service in world.services)
    running = first["calls"][0]
    said = (running["side"], running["service"], running["argument"])
    assert said == ("caller", "work.Echo", "+x")


@pytest.mark.parametrize("has_to_wait", [False, True])
async def test_a_question_that_cannot_be_sent_ends_its_call_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, has_to_wait: bool
) -> None:
    def wrong(*_: object, **_how: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as changed:
        changed.setattr(world, "ask", wrong)
        if has_to_wait:
            changed.setattr(asking, "BURST", 0)
        end, _, _ = await world.run()
    assert (end.kind, end.text) == ("problem", "failed: the agent of this VM failed")
    assert (await world.run())[0].exit_status == 3
