"""A service is a subject like a device: for policy, questions, the audit log and explain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from pedos_cli.prompt_question import lines, parse
from pedos_dom0.access.authorizer import CHANGED_POLICY, Authorizer, Consents, Grant, MustAsk
from pedos_dom0.access.callers import DOM0_USER, LOCAL, VM, Caller, CallerKind, as_told
from pedos_dom0.access.questions import Outcome, Question, judge
from pedos_dom0.access.subjects import DeviceSubject, ServiceSubject
from pedos_dom0.requests.explaining import Explaining
from pedos_dom0.tables.registry import DeviceKey, Registry
from pedos_protocol.errors import CallError
from pedos_protocol.messages import Device, PromptCall, parse_params

from tests.dom0.fakes import Params, World, yes

POLICY = """
test.Copy      *      work  vault      allow
test.Copy      *      work  @default   allow  target=vault
test.Open      +page  work  @default   ask    default_target=@adminvm
test.Open      +page  work  vault      ask
test.Open      +page  work  @adminvm   allow
test.Open      +page  work  sys-usb    deny
device.*.block *      work  @anyvm     deny
"""
WORK = Caller(kind=VM, name="work")
COPY = ServiceSubject("test.Copy")
OPEN = ServiceSubject("test.Open", "+page")


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, POLICY)
    world.vm("sys-usb", "keys")
    world.vm("work")
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


class Prompters:
    """A person who was asked says `answer`, which is judged as that of any prompter."""

    def __init__(self, answer: Params) -> None:
        self.answer = answer
        self.asked: list[tuple[Question, CallerKind]] = []

    async def ask(self, question: Question, _gone: trio.Event, kind: CallerKind) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.asked.append((question, kind))
        return judge(question, self.answer)


def authorizer(world: World, prompters: Prompters | None = None) -> Authorizer:
    return Authorizer(world.state, prompters or world.api.prompters)  # type: ignore[arg-type]


async def decisions(world: World) -> list[Params]:
    await world.state.audit.written()
    lines = world.audit("decision")
    for line in lines:
        del line["time"], line["event"]
    return lines


async def test_policy_decides_on_a_call_and_the_audit_log_names_it(world: World) -> None:
    grant = authorizer(world).require(WORK, COPY, "vault", "0123")
    assert grant == Grant(vm="vault", read_only=False)
    assert await decisions(world) == [
        {
            "request": "0123",
            "caller": "work",
            "service": "test.Copy",
            "argument": "+",
            "source": "work",
            "target": "vault",
            "vm": "vault",
            "verdict": "allow",
            "rule": "30-test.policy:2",
            "reason": "30-test.policy:2 says allow",
        }
    ]


async def test_a_rule_can_send_a_call_on(world: World) -> None:
    assert authorizer(world).require(WORK, COPY, "@default", "0123").vm == "vault"
    (line,) = await decisions(world)
    assert (line["target"], line["vm"]) == ("vault", "@default")


async def test_who_is_denied_a_call_is_told_what_that_kind_of_caller_may_know(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CallError) as raised:
        authorizer(world).require(WORK, OPEN, "sys-usb", "0123")
    told = as_told(WORK, raised.value, "0123")
    assert (told.code, told.message, told.data) == (
        "denied",
        "test.Open+page -> sys-usb",
        {"request": "0123"},
    )
    told = as_told(DOM0_USER, raised.value, "0123")
    assert told.message == "test.Open+page -> sys-usb"
    assert told.data == {
        "service": "test.Open",
        "argument": "+page",
        "vm": "sys-usb",
        "rule": "30-test.policy:7",
        "text": "test.Open +page work sys-usb deny",
        "request": "0123",
    }
    assert "denied: work may not call test.Open+page in sys-usb: " in caplog.text
    caplog.clear()
    with pytest.raises(CallError):
        authorizer(world).require(DOM0_USER, OPEN, "sys-usb", "4567")
    assert caplog.text == "", "dom0's user is told, and needs no log"


async def test_dom0_s_user_chooses_where_a_call_goes(world: World) -> None:
    prompters, consents = Prompters(yes("dom0")), Consents()
    asking = authorizer(world, prompters)
    with pytest.raises(MustAsk):
        asking.require(WORK, OPEN, "vault", "0123", consents)
    grant = await asking.allow(WORK, OPEN, "@default", "0123", trio.Event(), consents)
    assert grant.vm == "dom0"
    ((question, kind),) = prompters.asked
    assert (question.subject, question.source, question.shown, kind) == (OPEN, "work", {}, VM)
    assert (question.candidates, question.default) == (("dom0", "vault"), "dom0")
    # An agreement holds for as long as the policy stays the same.
    assert asking.require(WORK, OPEN, "@default", "0123", consents).vm == "dom0"
    world.policy.set("test.Open * work vault ask\n")
    with pytest.raises(CallError, match=CHANGED_POLICY):
        asking.require(WORK, OPEN, "vault", "0123", consents)


@pytest.mark.parametrize("target", ["sys-usb", "work", None])
async def test_an_answer_that_was_not_to_be_chosen_is_a_no(
    world: World, target: str | None
) -> None:
    asking = authorizer(world, Prompters({"verdict": "allow", "target": target}))
    with pytest.raises(CallError, match="which was not to be chosen"):
        await asking.allow(WORK, OPEN, "vault", "0123", trio.Event())


async def test_what_prompters_cannot_be_asked_about_is_a_no(world: World) -> None:
    async with world.client.prompter(yes("vault")) as prompter:
        with pytest.raises(CallError, match=r"takes questions about test\.Open\+page"):
            await authorizer(world).allow(WORK, OPEN, "vault", "0123", trio.Event())
    assert prompter.asked == []
    await world.state.audit.written()
    (line,) = world.audit("answered")
    assert (line["service"], line["argument"], line["verdict"]) == ("test.Open", "+page", "deny")
    assert world.audit("asked") == []


async def test_dom0_s_user_is_asked_about_a_call_with_its_own_words(world: World) -> None:
    asking = authorizer(world)
    async with (
        world.client.prompter(yes("vault"), calls=True) as newer,
        world.client.prompter(yes("vault")) as older,
    ):
        grant = await asking.allow(WORK, OPEN, "vault", "0123", trio.Event())
        assert grant.vm == "vault"
        assert older.asked == [], "it registered last, and cannot be asked about calls"
        (asked,) = newer.asked
        assert parse_params("prompt.call", asked) == PromptCall(
            request="0123",
            source="work",
            service="test.Open",
            argument="+page",
            candidates=("dom0", "vault"),
            default=None,
            timeout_s=60,
        )
        shown = lines(parse(1, asked, 0.0, "prompt.call"), 80, "utf-8")
        assert shown[1:] == [
            "work asks to call test.Open",
            "  argument    +page",
            "  service     test.Open",
            "  request     0123",
            "in which VM?",
            "  1  dom0",
            "  2  vault",
            "  n  none: deny it",
        ]
    await world.state.audit.written()
    (line,) = world.audit("asked")
    assert (line["service"], line["argument"]) == ("test.Open", "+page")
    (line,) = world.audit("answered")
    assert (line["verdict"], line["target"]) == ("allow", "vault")


@pytest.mark.parametrize(
    ("subject", "vm", "verdict", "line"),
    [
        (COPY, "vault", "allow", 2),
        (OPEN, "vault", "ask", 5),
        (OPEN, "sys-usb", "deny", 7),
        (ServiceSubject("test.Open"), "vault", "deny", None),
        (DeviceSubject("attach", DeviceKey("block", "sys-usb", "keys")), "vault", "deny", 8),
    ],
)
async def test_any_subject_is_explained_as_it_is_decided(
    world: World, subject: ServiceSubject | DeviceSubject, vm: str, verdict: str, line: int | None
) -> None:
    explaining = Explaining(world.state, authorizer(world))
    said = explaining.subject("work", subject, vm)
    rule = None if line is None else f"30-test.policy:{line}"
    assert (said.verdict, said.rule, said.default) == (verdict, rule, line is None)
    service, argument = subject.asked(world.state.registry)
    asked = explaining.request(service, argument, "work", vm)
    assert (asked.verdict, asked.rule, asked.trace) == (said.verdict, said.rule, said.trace)


def test_a_vm_has_none_of_the_properties_that_dom0_s_user_has() -> None:
    assert (LOCAL.sees_rules, LOCAL.sees_all, LOCAL.may_force, LOCAL.may_unassign) == (True,) * 4
    assert (VM.sees_rules, VM.sees_all, VM.may_force, VM.may_unassign) == (False,) * 4
    assert (LOCAL.throttled, VM.throttled) == (False, True)


def test_consent_does_not_hold_once_a_device_is_part_of_another_class() -> None:
    def seen(parent_class: str | None) -> object:
        registry = Registry()
        disk = Device(
            device="sda",
            device_class="block",
            identity="",
            description="a disk",
            size=512,
            read_only=False,
            busy=None,
            parent="1-2",
            parent_class=parent_class,
        )
        registry.replace("sys-usb", [disk])
        return DeviceSubject("attach", DeviceKey("block", "sys-usb", "sda")).seen(registry)

    assert seen("usb") != seen(None)
