"""The end of a call, however it comes, and the list of those that run."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from pedos_cli import calls
from pedos_dom0.calls import ends
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.calling import Calling, calling, lines, quiet, refused
from tests.dom0.fakes import Params, fails, hang

__all__ = ["calling"]


@pytest.mark.parametrize("who", ["work", "vault"])
async def test_an_agent_that_goes_away_ends_the_other_side(calling: Calling, who: str) -> None:
    answer = await calling.work.call()
    await quiet()
    gone, other = (calling.work, calling.vault) if who == "work" else (calling.vault, calling.work)
    killed: list[Params] = []

    async def kill(params: Params) -> None:
        killed.append(params)

    other.agent.on["service.kill"] = kill
    gone.kill()
    await quiet()
    (told,) = killed
    # A caller does not learn where policy has sent it.
    name = "work" if who == "work" else "the other VM"
    assert (told["kind"], told["text"]) == ("lost", f"the agent of {name} went away")
    end = lines(calling, "call_ended")[-1]
    assert (end["call"], end["kind"]) == (answer["call"], "lost")
    assert other.closed == [answer["port"]]
    calling.assert_nothing_left()


async def test_a_caller_has_the_rest_though_the_agent_of_the_service_goes_away(
    calling: Calling,
) -> None:
    answer = await calling.work.call()
    await quiet()
    await calling.vault.end(answer["call"])
    await quiet()
    calling.vault.kill()
    await quiet()
    assert list(calling.work.sides) == [answer["call"]]
    assert "service.kill" not in calling.work.agent.calls
    await calling.work.end(answer["call"], reusable=False)
    await quiet()
    calling.assert_nothing_left()


async def test_a_service_is_told_that_its_caller_is_gone(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await trio.sleep(1)
    await calling.work.end(answer["call"], "aborted", reusable=False)
    await trio.sleep(ends.LATE_SECONDS - 0.1)
    assert "service.kill" not in calling.vault.agent.calls
    await trio.sleep(0.2)
    assert "service.kill" in calling.vault.agent.calls
    calling.assert_nothing_left()


async def test_a_domain_that_is_destroyed_ends_its_calls(calling: Calling) -> None:
    await calling.work.call()
    await quiet()
    calling.vault.sides.clear()
    calling.vault.ports.clear()
    calling.world.driver.die("vault")
    await quiet()
    calling.assert_nothing_left()
    assert lines(calling, "call_ended")[-1]["kind"] == "lost"


async def test_the_end_is_in_the_log_though_the_caller_reads_slowly(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await trio.sleep(1)
    await calling.vault.end(answer["call"], status=7)
    await trio.sleep(ends.LATE_SECONDS - 0.1)
    assert lines(calling, "call_ended") == []
    (info,) = (await calling.world.client.call("call.list"))["calls"]
    assert info["state"] == "ending"
    await trio.sleep(0.2)
    assert lines(calling, "call_ended")[0]["status"] == 7
    await trio.sleep(3600)
    await calling.work.end(answer["call"], status=7)
    await trio.sleep(0.1)
    assert len(lines(calling, "call_ended")) == 1
    calling.assert_nothing_left()


async def test_where_the_sides_differ_the_log_has_both(calling: Calling) -> None:
    answer = await calling.work.call()
    await quiet()
    await calling.vault.end(answer["call"], "exited", 0, stdout=100)
    await calling.work.end(
        answer["call"], "problem", reusable=False, text="a breach", stdout=50, breach=True
    )
    await quiet()
    end = lines(calling, "call_ended")[-1]
    assert (end["kind"], end["caller_kind"], end["stdout"]) == ("exited", "problem", 100)
    assert end["breach"] == "caller: it is over"


@pytest.mark.parametrize("method", ["service.ended", "service.started"])
async def test_a_vm_that_tells_of_anothers_call_is_disconnected(
    calling: Calling, method: str
) -> None:
    answer = await calling.work.call()
    await quiet()
    peer = calling.untrusted.agent.peer
    assert peer is not None
    if method == "service.started":
        await peer.notify(method, {"call": answer["call"]})
    else:
        calling.untrusted.sides[answer["call"]] = calling.work.sides[answer["call"]]
        await calling.untrusted.end(answer["call"])
    await quiet()
    assert lines(calling, "disconnected")[-1]["vm"] == "untrusted"
    assert list(calling.vault.sides) == [answer["call"]]


@pytest.mark.parametrize("method", ["service.ended", "service.started", "channel.closed"])
async def test_a_malformed_notice_ends_the_connection(calling: Calling, method: str) -> None:
    assert calling.work.agent.peer is not None
    await calling.work.agent.peer.notify(method, {"call": 5})
    await quiet()
    assert lines(calling, "disconnected")[-1]["broke"]


async def test_dom0s_user_ends_a_call(calling: Calling) -> None:
    answer = await calling.work.call()
    await quiet()
    assert await calling.world.client.call("call.end", call=answer["call"]) == {}
    await quiet()
    end = lines(calling, "call_ended")[-1]
    assert (end["by"], end["kind"], end["text"]) == (
        "dom0",
        "problem",
        "dom0's user ended the call",
    )
    calling.assert_nothing_left()
    with fails("not_found", "no such call runs", "; what its service has left may"):
        await calling.world.client.call("call.end", call=answer["call"])


async def test_dom0s_user_ends_the_service_before_its_caller_goes(
    calling: Calling, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await quiet()
    side = calling.work.sides[answer["call"]]
    calling.vault.agent.on["service.kill"] = hang
    nursery.start_soon(not_confirmed, calling, answer["call"], "vault")
    await trio.sleep(ends.AHEAD / 2)
    assert calling.vault.agent.calls[-1] == "service.kill" and side.killed is None
    await trio.sleep(ends.AHEAD)
    assert side.killed is not None, "a service's agent that hangs holds up no caller"
    await trio.sleep(ends.KILL_TIMEOUT)
    nursery.cancel_scope.cancel()


async def not_confirmed(calling: Calling, call: str, *names: str) -> None:
    began = trio.current_time()
    with fails("timeout", f"{' and '.join(names)} did not confirm its end"):
        await calling.world.client.call("call.end", call=call, timeout_s=calls.TIMEOUT_S)
    assert trio.current_time() - began == pytest.approx(ends.CONFIRMED_SECONDS)


async def test_an_end_that_no_agent_obeys_is_not_said_to_be_one(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    calling.work.ends_when_killed = calling.vault.ends_when_killed = False
    await not_confirmed(calling, answer["call"], "vault", "work")
    await calling.vault.end(answer["call"], reusable=False)
    await not_confirmed(calling, answer["call"], "work")
    await calling.work.end(answer["call"], reusable=False)
    await trio.sleep(1)
    calling.assert_nothing_left()


async def test_an_agent_that_hangs_is_told_of_an_end_until_it_has_ended_its_side(
    calling: Calling, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await quiet()
    calling.vault.agent.on["service.kill"] = hang
    calling.work.ends_when_killed = False
    for _ in range(3):  # who asks again adds nothing
        nursery.start_soon(not_confirmed, calling, answer["call"], "vault", "work")
    told = calling.vault.agent.calls
    for times in (1, 2, 3):
        await trio.sleep(ends.KILL_TIMEOUT - 1)
        assert told.count("service.kill") == times
        await trio.sleep(1.1)
    await calling.vault.end(answer["call"], reusable=False)
    await trio.sleep(3 * ends.KILL_TIMEOUT)
    assert told.count("service.kill") == 4
    nursery.cancel_scope.cancel()


async def test_an_agent_that_says_at_once_that_it_is_late_is_not_asked_in_a_loop(
    calling: Calling, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await quiet()

    async def late(_params: object) -> None:
        raise CallError("timeout", "so it says")

    calling.vault.agent.on["service.kill"] = late
    calling.work.ends_when_killed = False
    nursery.start_soon(not_confirmed, calling, answer["call"], "vault", "work")
    await trio.sleep(5 * ends.KILL_TIMEOUT - 1)
    assert calling.vault.agent.calls.count("service.kill") == 5
    nursery.cancel_scope.cancel()


async def test_dom0s_user_ends_a_call_that_asks(calling: Calling, autojump_clock: Clock) -> None:
    async with calling.world.client.prompter(None, calls=True) as prompter:
        errors: list[CallError] = []

        async def call() -> None:
            errors.append(await refused(calling.work, "vault", "test.Ask"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await prompter.was_asked.wait()
            (info,) = (await calling.world.client.call("call.list"))["calls"]
            await calling.world.client.call("call.end", call=info["call"])
    assert [(each.code, each.message) for each in errors] == [
        ("failed", "dom0's user ended the call")
    ]
    (line,) = lines(calling, "call")
    assert (line["by"], line["outcome"]) == ("dom0", "failed: dom0's user ended the call")
    calling.assert_nothing_left()


# Lists


async def test_a_list_has_all_calls_with_what_the_agents_tell(
    calling: Calling, autojump_clock: Clock
) -> None:
    calling.work.bytes, calling.vault.bytes = (1, 2, 3), (9, 9, 9)
    for _ in range(5):
        await calling.work.call()
    await calling.dom0.call(uid=4321)
    calling.dom0.agent.on["call.running"] = hang
    calling.vault.agent.on["call.running"] = hang
    await quiet()
    listed = await calling.world.client.call("call.list")
    assert listed["more"] is False
    calls = listed["calls"]
    assert [each["number"] for each in calls] == list(range(1, 7))
    assert [(each["stdin"], each["stderr"]) for each in calls] == [(1, 3)] * 5 + [(None, None)]
    assert {(each["source"], each["target"], each["by"]) for each in calls} == {
        ("work", "vault", ""),
        ("dom0", "vault", "dom0 (uid 4321)"),
    }
    listed = await calling.world.client.call("call.list", after=calls[3]["number"])
    assert [each["call"] for each in listed["calls"]] == [each["call"] for each in calls[4:]]
