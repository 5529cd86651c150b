"""`check` refuses a user= that no Linux user can have and warns of rules that can never match."""

from __future__ import annotations

import random

import pytest
from attrs import evolve
from pedos_dom0.policy import lint
from pedos_dom0.policy.evaluate import evaluate
from pedos_dom0.policy.model import Rule
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.vms import facts_file

from . import random_policies


def rules_of(text: str) -> list[Rule]:
    rules, errors = parse_file("30-user.policy", text)
    assert not errors
    return rules


def warned(text: str) -> list[tuple[int, str]]:
    return [(each.line, each.message) for each in lint.warnings(rules_of(text))]


# user=


@pytest.mark.parametrize(
    "name", ["a:b", "-x", "+x", "~x", "12", ".", "..", "a/b", "a,b", "x" * 33, "a\N{DELETE}"]
)
def test_a_user_that_no_linux_user_can_be_is_refused(name: str) -> None:
    assert lint.user_problem(name) is not None


@pytest.mark.parametrize(
    "name", ["root", "user", "_apt", "systemd-network", "a.b", "ALICE", "me$", "x" * 32, "1a"]
)
def test_a_user_that_there_may_be_is_not(name: str) -> None:
    assert lint.user_problem(name) is None


def test_such_a_rule_is_an_error_of_check_and_none_of_the_language() -> None:
    rules = rules_of("s.A * work home allow user=a:b\ns.A * work vault allow user=user\n")
    (error,) = lint.errors(rules)
    assert (error.file, error.line) == ("30-user.policy", 1)
    assert error.message == "no Linux user can be called 'a:b': it has ':'"


# Rules that can never match


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("s.A * @dispvm:dvm work deny", "no request comes from '@dispvm:dvm'"),
        ("s.A * @type:Appvm work deny", "there is no type 'Appvm' of VM"),
        ("s.A * work @type:appvm deny", "there is no type 'appvm' of VM"),
        ("s.A * 9work work deny", "no VM can be called '9work'"),
        (f"s.A * work {'w' * 32} deny", "no VM can be called"),
        ("s.A * work @dispvm:a.b deny", "no VM can be called 'a.b'"),
        ("s.A * uuid:123 work deny", "'123' is no UUID"),
        ("device.attach.usb +9x:* work work deny", "no VM can be called '9x'"),
        ("device.attach.usb +a:-x work work deny", "no device can be called '-x'"),
        ("device.attach.usb +a:*:046D:* work work deny", "'046D' is no vendor's or product's"),
        ("device.attach.usb +a:*:46d:* work work deny", "'46d' is no vendor's or product's"),
        ("device.attach.pci +a:*:8086:15D3* work work deny", "'15D3*' is no vendor's"),
        (f"device.attach.usb +a:*:*{'x' * 257}* work work deny", "no identity can be as long"),
    ],
)
def test_a_rule_that_can_never_match_is_told_with_why(rule: str, why: str) -> None:
    ((line, message),) = warned(rule)
    assert line == 1
    assert message.startswith(f"this rule can never match: {why}")


@pytest.mark.parametrize(
    "rule",
    [
        "device.attach.usb +*:*:*u03* * * ask",
        "device.attach.usb +a:*:046d:c31c:x:u030101 work work deny",
        "device.attach.usb +a:*:046d:c5*:* work work deny",
        "device.attach.usb +a:*:only=u08*,u0e* work work deny",
        "device.attach.block +a:sd*:WD_5C:* work work deny",
        "s.A +x @type:AppVM @dispvm:@tag:net ask",
        "s.A * uuid:00000000-0000-0000-0000-000000000000 @default deny",
        "* * @tag:x @anyvm deny",
    ],
)
def test_a_rule_that_may_match_is_not(rule: str) -> None:
    assert warned(rule) == []


def test_the_types_are_those_that_facts_can_have() -> None:
    assert set(lint.TYPES) == {*facts_file.TYPES, "AdminVM"}


# Rules behind others


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("s.A * * * deny", "s.A * work work allow"),
        ("* * * * deny", "device.attach.usb +a:b:* @adminvm @default deny"),
        ("s.A * @anyvm @anyvm deny", "s.A +x work @dispvm:dvm allow"),
        ("s.A * @anyvm work deny", "s.A * @type:AppVM work allow"),
        ("s.A * dom0 work deny", "s.A * @adminvm work allow"),
        ("s.A * work @adminvm deny", "s.A * work dom0 allow"),
        ("device.*.usb * dom0 work deny", "device.attach.usb +a:* dom0 work allow"),
        ("device.attach.* * dom0 work deny", "device.attach.usb * dom0 work allow"),
        ("device.attach.block +a:sd* dom0 work deny", "device.attach.block +a:sda dom0 work allow"),
        ("device.attach.block +a dom0 work deny", "device.attach.block +a:*:* dom0 work allow"),
        (
            "device.attach.usb +a:* dom0 work deny",
            "device.attach.usb +a:*:0001:0002:* dom0 work allow",
        ),
    ],
)
def test_a_rule_behind_a_broader_one_is_never_reached(first: str, second: str) -> None:
    ((line, message),) = warned(f"{first}\n{second}\n")
    assert line == 2
    assert message == "this rule is never reached: 30-user.policy:1 matches all that it would"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("s.A * work work allow", "s.A * * * deny"),  # the broader one behind
        ("s.A * @anyvm work deny", "s.A * @tag:x work allow"),  # which dom0 may have
        ("s.A * @anyvm work deny", "s.A * uuid:00000000-0000-0000-0000-000000000000 work allow"),
        ("s.A * @anyvm work deny", "s.A * dom0 work allow"),
        ("s.A +x * * deny", "s.A * * * allow"),
        ("s.A * work @dispvm deny", "s.A * work @dispvm:dvm allow"),
        ("device.attach.* * * * deny", "device.*.usb * * * allow"),
        # What is sent elsewhere, and what may be offered.
        ("s.A * work * ask target=home", "s.A * work home allow"),
        ("s.A * work * ask", "s.A * work @default allow target=home"),
        # Of a device whose kinds are not all known, the stricter of both decides.
        ("device.attach.usb +*:*:*u08* * * allow", "device.attach.usb +*:*:*u08* * * deny"),
        ("device.attach.block +a:s*a dom0 work deny", "device.attach.block +a:sd* dom0 work allow"),
    ],
)
def test_a_rule_that_may_be_reached_is_not_told(first: str, second: str) -> None:
    assert warned(f"{first}\n{second}\n") == []


def test_without_the_rules_that_are_told_every_request_is_decided_as_with_them() -> None:
    rnd = random.Random(17)
    told = 0
    for _ in range(300):
        rules = rules_of(random_policies.policy(rnd, 12))
        lines = {each.line for each in lint.warnings(rules) if "UUID" not in each.message}
        told += len(lines)
        whole = Snapshot(rules)
        rest = Snapshot([rule for rule in rules if rule.line not in lines])
        system = random_policies.system(rnd)
        for _ in range(60):
            request = random_policies.request(rnd)
            expected, found = (evaluate(request, each, system) for each in (whole, rest))
            assert found == expected, (request, [rule.text for rule in rules])
    assert told > 300


def test_ten_thousand_rules_take_no_long_time() -> None:
    template = rules_of("device.attach.block +sys-usb:sda:* work work allow")[0]
    rules = [
        evolve(template, line=at, argument=f"+sys-usb:sd{at}*:*", source=f"work{at % 50}")
        for at in range(10_000)
    ]
    assert list(lint.warnings(rules)) == []
