"""What a VM may ask for under the whole language, what a redirect does, and what a VM learns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.audit.throttle import THROTTLE_AFTER, THROTTLE_INTERVAL
from pedos_protocol.errors import CallError
from pedos_protocol.messages import parse_result
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, Params, World, fails, named

FACTS = """
[work]
tags = ["office"]
[vault]
internal = true
[halted]
template-for-dispvms = true
"""
RULES = """
device.attach.block  +sys-usb:*:0000:*   *           *       deny
device.attach.block  +sys-usb:free*      @tag:office work    allow
device.attach.block  +sys-usb:sent       @tag:office work    allow target=vault
device.attach.block  +sys-usb:self       @tag:office work    allow target=sys-usb
device.attach.block  +sys-usb:dom0       @tag:office work    allow target=dom0
device.attach.block  +sys-usb:none       @tag:office work    allow target=nobody
device.attach.block  +sys-usb:halted     @tag:office work    allow target=halted
device.attach.block  +sys-usb:maybe      @tag:office work    ask
device.detach.block  +sys-usb:free1      @tag:office work    allow
device.detach.block  +sys-usb:free2      @tag:office work    allow target=vault
device.list.*        *                   work        work    allow
"""


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, RULES + ALLOW_DOM0)
    world.facts_folder = tmp_path / "vms.d"
    world.facts_folder.mkdir()
    (world.facts_folder / "10-x.toml").write_text(FACTS)
    world.vm("sys-usb", "free1", "free2", "sent", "self", "dom0", "none", "halted", "maybe")
    world.driver.agents["sys-usb"].plug("free3", identity="0000:0001")
    world.vm("work", "own")
    world.vm("vault")
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def ask(world: World, vm: str, method: str, device: str, target: str = "work") -> Params:
    return await world.driver.agents[vm].ask(method, **named(target, device))


async def test_rules_speak_of_what_vms_d_says(world: World, autojump_clock: Clock) -> None:
    assert (await ask(world, "work", "device.attach", "sys-usb:free1"))["outcome"] == "attached"
    with fails("denied"):
        await ask(world, "vault", "device.attach", "sys-usb:free2")
    decision = world.audit("decision")[0]
    assert {key: decision[key] for key in ("caller", "service", "argument", "source")} == {
        "caller": "work",
        "service": "device.attach.block",
        "argument": "+sys-usb:free1:046d:c52b",
        "source": "work",
    }
    assert (decision["target"], decision["vm"], decision["verdict"]) == ("work", "work", "allow")
    assert decision["rule"] == "30-test.policy:3"


async def test_what_is_known_of_a_vm_can_change(world: World, autojump_clock: Clock) -> None:
    assert world.facts_folder is not None
    (world.facts_folder / "10-x.toml").write_text('[work]\ntags = ["home"]\n')
    world.state.facts.reload()
    with fails("denied"):
        await ask(world, "work", "device.attach", "sys-usb:free1")


# Redirects


async def test_a_redirect_gives_the_device_to_another_vm_of_which_the_asker_learns_nothing(
    world: World, autojump_clock: Clock
) -> None:
    answer = await ask(world, "work", "device.attach", "sys-usb:sent")
    assert {**answer, "request": ""} == {
        "outcome": "attached",
        "options": {},
        "request": "",
        "vm": None,
        "policy_ok": None,
        "note": None,
    }
    assert [lease.key.device for lease in world.state.leases.of_vm("vault")] == ["sent"]
    assert world.audit("decision")[-1]["target"] == "vault"
    assert world.audit("attach")[-1]["vm"] == "vault"


async def test_dom0_alone_is_told_whether_the_policy_is_in_order(
    world: World, autojump_clock: Clock
) -> None:
    told = await ask(world, "work", "device.attach", "sys-usb:free1")
    assert told["policy_ok"] is None
    world.policy.ok = False
    told = await world.client.call("device.detach", **named("work", "sys-usb:free1"))
    assert told["policy_ok"] is False


async def test_a_redirect_does_not_tell_which_names_are_in_use_where_it_goes(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:free2", options={"frontend-dev": "xvdq"})
    agent = world.driver.agents["work"]
    with fails("denied"):
        await agent.ask(
            "device.attach", **named("work", "sys-usb:sent"), options={"frontend-dev": "xvdq"}
        )
    assert "xvdq" in world.audit("attach")[-1]["options"]["frontend-dev"]


@pytest.mark.parametrize("device", ["self", "dom0", "none", "halted"])
async def test_a_redirect_to_what_cannot_have_it_is_a_denial_to_a_vm(
    world: World, autojump_clock: Clock, device: str
) -> None:
    with pytest.raises(CallError) as refused:
        await ask(world, "work", "device.attach", f"sys-usb:{device}")
    error = refused.value
    assert (error.code, error.message) == ("denied", f"sys-usb:{device} -> work")
    assert error.data.keys() == {"request"}
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("device.attach", "no block device named 'nosuch'"),
        ("device.detach", "neither attached"),
    ],
)
async def test_what_a_vm_is_not_told_stands_in_the_audit_log(
    world: World, autojump_clock: Clock, method: str, why: str
) -> None:
    world.policy.set("device.*.block  *  work  *  allow\n")
    agent = world.driver.agents["work"]
    with fails("denied"):
        await agent.ask(method, **named("vault", "sys-usb:nosuch"))
    record = world.audit(method.removeprefix("device."))[-1]
    assert record["outcome"] == "denied: sys-usb:nosuch -> vault"
    assert why in record["reason"]


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("sys-usb", "usage", "sys-usb has this device already"),
        ("dom0", "usage", "dom0 cannot be given a device"),
        ("nobody", "denied", "says allow, but there is no VM 'nobody'"),
        ("halted", "failed", "halted is halted"),
        ("@dispvm:halted", "failed", "policy sends it to @dispvm:halted, which cannot be given"),
    ],
)
async def test_a_redirect_to_what_cannot_have_it_is_explained_to_dom0(
    world: World, autojump_clock: Clock, target: str, code: str, words: str
) -> None:
    world.policy.set(f"device.attach.block * @adminvm work allow target={target}\n")
    with fails(code, words):
        await world.client.attach("work", "sys-usb:free1")
    world.assert_nothing_left()


async def test_dom0_is_told_where_it_went(world: World, autojump_clock: Clock) -> None:
    world.policy.set(
        "device.attach.block * @adminvm work allow target=vault read-only=yes\n"
        "device.assign.block * @adminvm vault allow\n"
    )
    answer = await world.client.attach("work", "sys-usb:free1", persistent=True)
    assert (answer["vm"], answer["options"]["read-only"]) == ("vault", "yes")
    assert len(world.state.store.assignments("vault")) == 1
    assert world.state.store.assignments("work") == []


async def test_only_an_attach_can_be_sent_elsewhere(world: World, autojump_clock: Clock) -> None:
    for device in ("free1", "free2"):
        await ask(world, "work", "device.attach", f"sys-usb:{device}")
    assert (await ask(world, "work", "device.detach", "sys-usb:free1"))["results"][0]["detached"]
    with fails("denied"):
        await ask(world, "work", "device.detach", "sys-usb:free2")
    last = world.audit("decision")[-1]
    assert (last["verdict"], last["rule"]) == ("deny", "30-test.policy:11")
    assert last["reason"] == "the rule sends it to vault, but detach is about work"


async def test_autostart_no_denies_a_halted_vm_but_not_one_that_is_being_started(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.*.block * @adminvm @anyvm allow\n")
    await world.client.attach("halted", "sys-usb:free1", persistent=True)
    world.policy.set("device.*.block * @adminvm @anyvm allow autostart=no\n")
    with fails("denied"):
        await world.client.attach("halted", "sys-usb:free2", persistent=True)
    answer = await world.client.call("vm.start", vm="halted")
    assert answer["attached"] == ["sys-usb:free1"]
    assert world.state.facts.starting == set()


async def test_a_listing_waits_for_nobody_so_what_is_to_be_asked_is_not_shown(
    world: World, autojump_clock: Clock
) -> None:
    async def listed() -> list[str]:
        answer = await world.driver.agents["work"].ask("device.list", device_class="block")
        return [device["device"] for device in answer["devices"]]

    assert await listed() == ["own"]
    for action in ("ask", "allow target=vault", "deny"):
        world.policy.set(f"device.list.* * * * {action}\n")
        async with world.client.prompter() as prompter:
            assert await listed() == []
        assert prompter.asked == []


# policy.mine


async def mine(world: World, verb: str, device: str, vm: str = "work") -> str:
    backend, _, name = device.partition(":")
    params = {"verb": verb, "device_class": "block", "backend": backend, "device": name}
    answer = await world.driver.agents[vm].ask("policy.mine", **params)
    assert answer.keys() == {"verdict"}
    return str(answer["verdict"])


@pytest.mark.parametrize(
    ("verb", "device", "verdict"),
    [
        ("attach", "sys-usb:free1", "allow"),
        ("attach", "sys-usb:maybe", "ask"),
        ("attach", "sys-usb:sent", "allow"),
        ("attach", "vault:none", "deny"),
        # Allowed by name, but: not there, denied by what it is, no such VM.
        ("attach", "sys-usb:free9", "deny"),
        ("attach", "sys-usb:free3", "deny"),
        ("attach", "nobody:free1", "deny"),
        ("attach", "work:own", "deny"),
        ("assign", "sys-usb:free1", "deny"),
        # The devices are not its own, so it must not learn whether they exist.
        ("detach", "sys-usb:free1", "deny"),
        ("list", "sys-usb:free1", "deny"),
        ("list", "work:own", "allow"),
        ("list", "work:nothing", "deny"),
    ],
)
async def test_a_vm_learns_its_own_verdict(
    world: World, autojump_clock: Clock, verb: str, device: str, verdict: str
) -> None:
    assert await mine(world, verb, device) == verdict


async def test_a_vm_learns_of_what_it_has(world: World, autojump_clock: Clock) -> None:
    for device in ("sys-usb:free1", "sys-usb:free2"):
        await ask(world, "work", "device.attach", device)
    assert await mine(world, "detach", "sys-usb:free1") == "allow"
    assert await mine(world, "detach", "sys-usb:free2") == "deny"
    assert await mine(world, "list", "sys-usb:free1") == "allow"
    assert await mine(world, "detach", "sys-usb:free1", vm="vault") == "deny"


async def test_a_question_about_a_verdict_asks_nobody_and_dom0_has_other_means(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter() as prompter:
        assert await mine(world, "attach", "sys-usb:maybe") == "ask"
    assert prompter.asked == []
    with fails("unknown_method"):
        await world.client.call(
            "policy.mine", verb="list", device_class="block", backend="work", device="own"
        )


# Withdrawn requests


@pytest.mark.parametrize("step", ["export.start", "import.start"])
async def test_an_attach_of_a_vm_that_gives_up_meanwhile_is_done_all_the_same(
    world: World, autojump_clock: Clock, step: str
) -> None:
    reached, go_on = trio.Event(), trio.Event()

    async def wait(_params: Params) -> None:
        reached.set()
        await go_on.wait()

    world.driver.agents["sys-usb" if step == "export.start" else "work"].on[step] = wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, world, "work", "device.attach", "sys-usb:free1")
        await reached.wait()
        nursery.cancel_scope.cancel()
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [lease.state for lease in world.state.leases.of_vm("work")] == ["attached"]
    assert world.audit("attach")[-1]["outcome"] == "attached"


# policy.explain and policy.system


async def explain(world: World, argument: str, **changes: str) -> Any:
    question = {"service": "device.attach.block", "source": "work", "target": "work", **changes}
    answer = await world.client.call("policy.explain", argument=argument, **question)
    return parse_result("policy.explain", answer)


async def test_an_explanation_fills_in_what_dom0_knows_of_the_device(
    world: World, autojump_clock: Clock
) -> None:
    answer = await explain(world, "+sys-usb:free3")
    assert answer.argument == "+sys-usb:free3:0000:0001"
    assert (answer.verdict, answer.rule) == ("deny", "30-test.policy:2")
    # What is said of the identity is taken for what it is: a question.
    answer = await explain(world, "+sys-usb:free3:046d:c52b")
    assert (answer.verdict, answer.argument) == ("allow", "+sys-usb:free3:046d:c52b")
    assert [step.rule for step in answer.trace] == ["30-test.policy:2"]
    answer = await explain(world, "+sys-usb:free9")
    assert (answer.verdict, answer.argument) == ("allow", "+sys-usb:free9:")
    assert answer.text.startswith("device.attach.block +sys-usb:free*")


async def test_an_explanation_has_redirects_candidates_and_the_default(
    world: World, autojump_clock: Clock
) -> None:
    answer = await explain(world, "+sys-usb:sent")
    assert (answer.verdict, answer.target, answer.autostart) == ("allow", "vault", True)
    answer = await explain(world, "+sys-usb:maybe")
    assert (answer.verdict, answer.candidates) == ("ask", ("work",))
    answer = await explain(world, "+x", service="qubes.Filecopy", target="@default")
    assert (answer.verdict, answer.default, answer.rule) == ("deny", True, None)
    for service, argument in (("device.eject.block", "+x"), ("*", "*"), ("device.list.usb", "+a")):
        answer = await explain(world, argument, service=service)
        assert answer.verdict == "deny" and "malformed" in answer.reason


async def test_what_is_no_word_of_a_rule_is_no_question(
    world: World, autojump_clock: Clock
) -> None:
    for argument in ("+a b", "+\x1b[2J", "+" + "x" * 600):
        with fails("usage", "argument"):
            await explain(world, argument)


async def test_an_explanation_of_a_request_has_the_rule_that_decided_and_counts_those_left_out(
    world: World, autojump_clock: Clock
) -> None:
    other = "device.attach.block +sys-usb:x work vault allow\n"
    world.policy.set(other * 3000 + "device.attach.block * work work allow\n")
    answer = await explain(world, "+sys-usb:free1")
    assert answer.rule == "30-test.policy:3001"
    assert len(answer.trace) > 50
    assert len(answer.trace) + answer.trace_left_out == 3000


async def test_an_explanation_counts_the_candidates_that_it_leaves_out(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.policy.set("device.attach.block * work @anyvm ask\n")
    monkeypatch.setattr("pedos_dom0.requests.explaining.LIST_MAX", 30)
    for number in range(9):
        world.vm(f"vm{number}", running=False)
    answer = await explain(world, "+sys-usb:maybe", target="@default")
    assert answer.verdict == "ask" and answer.candidates_left_out > 5
    everyone = len(answer.candidates) + answer.candidates_left_out
    monkeypatch.undo()
    answer = await explain(world, "+sys-usb:maybe", target="@default")
    assert (len(answer.candidates), answer.candidates_left_out) == (everyone, 0)
    assert everyone > 10


async def test_the_facts_of_all_vms_come_in_pages(world: World, autojump_clock: Clock) -> None:
    assert world.facts_folder is not None
    for number in range(100):
        world.vm(f"vm{number}", running=False)
    tags = ", ".join(f'"{"t" * 50}{number}"' for number in range(30))
    lines = [f"[vm{number}]\ntags = [{tags}]\n" for number in range(100)]
    (world.facts_folder / "20-y.toml").write_text("".join(lines))
    assert world.state.facts.reload()
    names: list[str] = []
    after, pages, more = None, 0, True
    while more:
        answer = await world.client.call("policy.system", after=after)
        page = parse_result("policy.system", answer)
        names += [vm.name for vm in page.vms]
        after, pages, more = names[-1], pages + 1, page.more
    assert pages > 1
    assert names == ["dom0", "halted", "sys-usb", "vault", *(f"vm{n}" for n in range(100)), "work"]


# The log


async def test_denials_of_a_vm_are_logged_and_then_summed_up(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def denied(times: int) -> None:
        for _ in range(times):
            with fails("denied"):
                await ask(world, "work", "device.attach", "sys-usb:free3")

    await denied(3)
    said = [message for message in caplog.messages if message.startswith("denied: work")]
    assert len(said) == 3
    assert "may not attach sys-usb:free3 for work: 30-test.policy:2 says deny" in said[0]
    await denied(200)
    await trio.sleep(THROTTLE_INTERVAL)
    await denied(1)
    said = [message for message in caplog.messages if "denied" in message]
    assert len(said) < THROTTLE_AFTER + 2
    assert "work was denied" in said[-1] and "times more" in said[-1]


async def test_a_rule_without_notify_is_not_logged_but_audited(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world.policy.set("device.attach.block * * * deny notify=no\n")
    with fails("denied"):
        await ask(world, "work", "device.attach", "sys-usb:free1")
    assert not any("denied" in message for message in caplog.messages)
    assert world.audit("decision")[-1]["verdict"] == "deny"
