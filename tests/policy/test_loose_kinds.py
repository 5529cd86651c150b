"""`check` notes a rule that allows a kind of USB device, and what has a keyboard beside it."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from attrs import evolve
from pedos_dom0.policy import loose_kinds
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.model import PolicyError, Rule
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts

SYSTEM = System({name: VmFacts(name) for name in ("work", "vault", "sys-usb")})
ALLOW = "device.attach.usb {} @adminvm work allow"
ASK = "device.attach.usb +*:*:*u03* @adminvm @anyvm ask"


def rules_of(text: str) -> list[Rule]:
    rules, errors = parse_file("30-user.policy", text)
    assert errors == []
    return rules


def noted(*lines: str) -> list[PolicyError]:
    return list(loose_kinds.notes(rules_of("\n".join(lines))))


@pytest.mark.parametrize(
    ("argument", "only"),
    [
        ("+*:*:*u08*", "+*:*:only=u08*"),
        ("+sys-usb:*:*u080650", "+sys-usb:*:only=u080650"),
        ("+sys-usb:*:*:*:*:u08*", "+sys-usb:*:only=u08*"),
        ("+sys-usb:1-2:0781:*:*:*u0806*", "+sys-usb:1-2:0781:*:*:only=u0806*"),
        ("+*:*:*u080650*u0e*", "+*:*:only=u080650,u0e*"),
        ("+*:*:*:*:*:*u0a0000u08*", "+*:*:only=u0a0000,u08*"),
    ],
)
def test_a_rule_by_one_kind_is_noted_with_one_that_means_it_alone(argument: str, only: str) -> None:
    (note,) = noted(ALLOW.format(argument))
    assert (note.file, note.line, note.text) == ("30-user.policy", 1, ALLOW.format(argument))
    assert "also allows a USB device that has a keyboard beside u0" in note.message
    assert note.help.startswith(f"{only} is one with nothing else")
    assert noted(ALLOW.format(only)) == []


@pytest.mark.parametrize(
    "argument",
    [
        *("*", "+sys-usb", "+sys-usb:1-*", "+*:*:1050:*", "+*:*:*Kingston*", "+*:*:*:*:u2*_x*"),
        *("+*:*:only=u08*", "+*:*:0781:*:only=u08*,u0e*"),
        # A serial number has no colons, so these are all of its kinds.
        *("+*:*:*:u080650", "+*:*:0781:5581:x:u080650", "+*:*:*:u080650u0e0100"),
        # Who names keyboards means them.
        *("+*:*:*u03*", "+*:*:*u0301*u08*", "+*:*:*u0*"),
    ],
)
def test_a_rule_that_is_not_by_kind_or_by_all_of_them_is_not(argument: str) -> None:
    assert noted(ALLOW.format(argument)) == []


@pytest.mark.parametrize("action", ["ask", "deny"])
@pytest.mark.parametrize(
    "before",
    [
        "device.attach.usb +*:*:*u03* @adminvm @anyvm {}",
        "device.*.* +*:*:*:*:*:*u03* * * {}",
        "device.attach.usb +sys-usb:*:*u03* dom0 work {}",
        "device.attach.usb +sys-usb:* @adminvm work {}",
        "* * * work {}",
    ],
)
def test_it_is_not_noted_behind_a_rule_about_keyboards(before: str, action: str) -> None:
    rule = ALLOW.format("+sys-usb:*:*u08*")
    assert noted(before.format(action), rule) == []
    assert len(noted(rule, before.format(action))) == 1
    assert noted(before.format(action), f"{rule} target=vault") == []


@pytest.mark.parametrize(
    "before",
    [
        "device.attach.usb +*:*:*u03* @adminvm vault deny",
        "device.attach.usb +sys-net:*:*u03* @adminvm work deny",
        "device.attach.usb +*:*:*u0301* @adminvm work deny",
        "device.attach.usb +*:*:1050:*u03* @adminvm work deny",
        "device.attach.usb +*:*:only=u03* @adminvm work deny",
        "device.attach.usb +*:*:*u03* @adminvm work allow",
        "device.detach.usb * @adminvm work deny",
        "device.attach.block * @adminvm work deny",
    ],
)
def test_it_is_noted_behind_a_rule_about_others(before: str) -> None:
    assert [each.line for each in noted(before, ALLOW.format("+sys-usb:*:*u08*"))] == [2]


def test_only_rules_that_give_a_device_are_noted() -> None:
    for service in ("device.list.usb", "device.detach.usb", "device.attach.block"):
        assert noted(f"{service} +*:*:*u08* @adminvm work allow") == []
    for service in ("device.assign.usb", "device.*.usb", "device.attach.*", "device.*.*"):
        assert len(noted(f"{service} +*:*:*u08* @adminvm work allow")) == 1
    assert noted("device.attach.usb +*:*:*u08* @adminvm work ask") == []


HEADS = ("0781:5581:x", "046d:c31c:77", "1:2:")
STORAGE, KEYBOARD, CAMERA = "u080650", "u030101", "u0e0100"
KINDS = ["".join(each) for each in itertools.permutations((STORAGE, KEYBOARD, CAMERA))]
KINDS += [STORAGE + KEYBOARD, KEYBOARD + STORAGE, KEYBOARD + CAMERA, CAMERA + KEYBOARD]
IDENTITIES = (
    *("*", "*u03*", "*u0301*", "only=u03*", "0781:*", "*:*:*:*u03*", "*u08*", "*u080650", "u08*"),
    *("*:u08*", "0781:*:*u0e*", "only=u08*,u0e*", "*u080650*u0e*", "0781:5581:x:u080650u030101"),
)


@pytest.mark.parametrize("seed", range(3))
def test_no_rule_by_kind_allows_a_keyboard_without_a_note(seed: int) -> None:
    rnd = random.Random(seed)
    found = 0
    for _ in range(150):
        lines = [
            f"device.{rnd.choice(('attach', '*', 'list'))}.{rnd.choice(('usb', '*'))} "
            f"+{rnd.choice(('*', 'sys-usb'))}:{rnd.choice(('*', '1-*', '1-1'))}:"
            f"{rnd.choice(IDENTITIES)} {rnd.choice(('*', '@adminvm'))} "
            f"{rnd.choice(('*', 'work', '@anyvm', 'vault'))} "
            f"{rnd.choice(('allow', 'allow', 'ask', 'deny'))}"
            for _ in range(8)
        ]
        rules = rules_of("\n".join(lines))
        snapshot, told = Snapshot(rules), {each.line for each in loose_kinds.notes(rules)}
        for head, kinds in itertools.product(HEADS, KINDS):
            request = Request("device.attach.usb", f"+sys-usb:1-1:{head}:{kinds}", "dom0", "work")
            rule = evaluate(request, snapshot, SYSTEM).rule
            if rule is None or rule.action != "allow":
                continue
            identity = rule.argument.split(":", 2)[-1]
            by_kind = re.search(r"u0[8e]", identity) and "u03" not in identity
            if by_kind and "only=" not in identity:
                found += 1
                assert rule.line in told, (lines, request)
    assert found > 100


def test_ten_thousand_rules_take_no_long_time() -> None:
    template = rules_of(ALLOW.format("+sys-usb:1-1:*u08*"))[0]
    before = rules_of(ASK)[0]
    rules = [
        evolve(rule, line=2 * at, argument=f"+sys-usb:{at}-1:{rule.argument.split(':', 2)[2]}")
        for at in range(5000)
        for rule in (before, template)
    ]
    assert list(loose_kinds.notes(rules)) == []
