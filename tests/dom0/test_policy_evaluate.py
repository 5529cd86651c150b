"""Decisions: first match, total, explained, and the same through the index as by reading."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pedos_dom0.policy import evaluate as evaluate_module
from pedos_dom0.policy.evaluate import ARGUMENT_MAX, Decision, Request
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.selectors import Glob
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_dom0.policy.tokens import DEVICE_VERBS, service_tokens
from pedos_protocol.device_classes import class_names
from pedos_protocol.names import IDENTITY_MAX

SYSTEM = System({name: VmFacts(name) for name in ("work", "vault", "sys-usb")})
STICK = Request("device.attach.block", "+sys-usb:sda:046d:c52b", "dom0", "work")


def evaluate(request: Request, snapshot: Snapshot, trace: bool = False) -> Decision:
    return evaluate_module.evaluate(request, snapshot, SYSTEM, trace)


def policy(text: str) -> Snapshot:
    rules, errors = parse_file("30-user.policy", text)
    assert errors == []
    return Snapshot(rules)


def test_without_rules_everything_is_denied() -> None:
    decision = evaluate(STICK, Snapshot.DENY_ALL)
    assert (decision.verdict, decision.default, decision.rule) == ("deny", True, None)
    assert decision.reason == "no rule matched (default deny)"


@pytest.mark.parametrize("identity", ["046d:c52b", "1050:0407:S:u-unknown"])
@pytest.mark.parametrize("target", ["dom0", "@adminvm"])
@pytest.mark.parametrize(
    "rules", ["", "device.list.* * * @anyvm deny", "device.list.usb +*:*:*u03* dom0 dom0 allow"]
)
def test_dom0s_user_sees_what_no_rule_hides(identity: str, target: str, rules: str) -> None:
    request = Request("device.list.usb", f"+sys-usb:1-1:{identity}", "dom0", target)
    for trace in (True, False):
        decision = evaluate(request, policy(rules), trace=trace)
        assert (decision.verdict, decision.target, decision.rule) == ("allow", "dom0", None)
        assert not decision.default
        assert decision.reason == "dom0's user sees every device that no rule hides"


@pytest.mark.parametrize(
    ("service", "source", "target"),
    [
        ("device.list.usb", "work", "work"),
        ("device.list.usb", "work", "dom0"),
        ("device.list.usb", "dom0", "work"),
        ("device.list.usb", "dom0", "@default"),
        ("device.attach.usb", "dom0", "dom0"),
        ("device.detach.usb", "dom0", "dom0"),
        ("list.usb", "dom0", "dom0"),
    ],
)
def test_without_a_rule_nothing_else_is_allowed(service: str, source: str, target: str) -> None:
    request = Request(service, "+sys-usb:1-1:046d:c52b", source, target)
    decision = evaluate(request, Snapshot.DENY_ALL)
    assert (decision.verdict, decision.default, decision.notify) == ("deny", True, True)


def test_a_decision_carries_rule_and_parameters() -> None:
    decision = evaluate(STICK, policy("device.*.block * dom0 work allow read-only=yes"))
    assert decision.verdict == "allow"
    assert not decision.default
    assert decision.rule is not None
    assert decision.rule.where == "30-user.policy:1"
    assert dict(decision.parameters) == {"read-only": "yes"}
    assert decision.reason == "30-user.policy:1 says allow"


def test_the_trace_says_of_each_rule_why_it_did_not_match() -> None:
    snapshot = policy(
        "device.attach.usb * * * allow\n"  # another service: not looked at
        "device.attach.block * vault * allow\n"
        "device.attach.* * @adminvm vault allow\n"
        "* * @anyvm * allow\n"
        "device.*.block +sys-net * * allow\n"
        "device.*.block +*:sdb * * allow\n"
        "device.*.block +*:*:1050:* * * allow\n"
        "device.*.* +sys-usb dom0 work ask\n"
        "device.*.* * dom0 work allow\n"
    )
    decision = evaluate(STICK, snapshot, trace=True)
    assert decision.verdict == "ask"
    assert decision.rule is snapshot.rules[7]
    assert [(step.rule.line, step.why) for step in decision.trace] == [
        (2, "source 'dom0' is not 'vault'"),
        (3, "target 'work' is not 'vault'"),
        (4, "source 'dom0' is not '@anyvm'"),
        (5, "BACKEND 'sys-usb' does not match 'sys-net'"),
        (6, "PORT 'sda' does not match 'sdb'"),
        (7, "IDENTITY '046d:c52b' does not match '1050:*'"),
    ]
    assert evaluate(STICK, snapshot).trace == ()


def test_a_snapshot_cannot_be_changed() -> None:
    snapshot = policy("device.*.* * * * allow")
    with pytest.raises(AttributeError):
        snapshot.rules = ()  # type: ignore[misc]


NOT_REQUESTS: list[tuple[str, Any]] = [
    ("service", None),
    ("service", 7),
    ("service", "device.steal.block"),
    ("service", "device.attach.Floppy"),
    ("service", "device.attach.seventeenletterss"),
    ("service", "device.*.block"),
    ("service", "*"),
    ("service", "pedos/Filecopy"),
    ("service", "device.attach.block\n"),
    ("service", "x" * 10_000_000),
    ("source", None),
    ("source", b"dom0"),
    ("source", ["dom0"]),
    ("source", ""),
    ("source", "*"),
    ("source", "@adminvm"),
    ("source", "dom0 "),
    ("target", "@anyvm"),
    ("target", "work\n"),
    ("target", "wörk"),
    ("target", "\ud800"),
    ("target", "w" * 10_000_000),
    ("argument", None),
    ("argument", "*"),
    ("argument", ""),
    ("argument", "+"),
    ("argument", "+sys-usb"),
    ("argument", "+sys-usb:sda"),
    ("argument", "+*:sda:x"),
    ("argument", "+sys-usb:*:x"),
    ("argument", "+sys-usb:sda:*"),
    ("argument", "+sys-usb:sda:\x1b[31m"),
    ("argument", "+sys-usb::"),
    ("argument", "+sys-usb:sda:" + "x" * (IDENTITY_MAX + 1)),
    ("argument", "+sys-usb:sda:" + "x" * 10_000_000),
]


@pytest.mark.parametrize(("name", "value"), NOT_REQUESTS, ids=lambda value: repr(value)[:40])
def test_what_is_no_request_is_denied_even_where_everything_is_allowed(
    name: str, value: Any
) -> None:
    everything = policy("* * * * allow\ndevice.*.* * * * allow")
    assert evaluate(STICK, everything).verdict == "allow"
    for trace in (False, True):
        decision = evaluate(attrs.evolve(STICK, **{name: value}), everything, trace)
        assert decision.verdict == "deny"
        assert decision.reason.startswith("malformed request: ")
        assert len(decision.reason) < 100


@pytest.mark.parametrize("service", ["device.attach.*", "device.*.*", "*"])
def test_rules_for_all_classes_are_about_those_of_another_version_too(service: str) -> None:
    request = attrs.evolve(STICK, service="device.attach.floppy")
    decision = evaluate(request, policy(f"device.*.block * * * allow\n{service} * * * deny"))
    assert decision.rule is not None
    assert (decision.verdict, decision.rule.line) == ("deny", 2)


def test_no_rule_can_name_a_class_of_another_version() -> None:
    _, errors = parse_file("30-user.policy", "device.attach.floppy * * * deny")
    assert ["no device class 'floppy'" in error.message for error in errors] == [True]


def test_a_text_with_a_comparison_of_its_own_is_no_request() -> None:
    class Chameleon(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("dom0")

    decision = evaluate(attrs.evolve(STICK, source=Chameleon("work")), policy("* * * * allow"))
    assert decision.verdict == "deny"
    assert evaluate(None, policy("* * * * allow")).verdict == "deny"  # type: ignore[arg-type]


def test_the_longest_names_that_there_are_fit_into_a_request() -> None:
    argument = f"+{'v' * 31}:{'d' * 64}:{'i' * IDENTITY_MAX}"
    assert len(argument) <= ARGUMENT_MAX
    decision = evaluate(attrs.evolve(STICK, argument=argument), policy("* * * * allow"))
    assert decision.verdict == "allow"


ANYTHING = st.one_of(
    st.none(), st.integers(), st.binary(), st.lists(st.text()), st.text(), st.floats()
)


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.booleans())
@example("device.attach.block", "+a:b:c", "dom0", "work", True)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_any_request_gets_a_decision(
    service: Any, argument: Any, source: Any, target: Any, trace: bool
) -> None:
    decision = evaluate(Request(service, argument, source, target), policy("* * * * deny"), trace)
    assert isinstance(decision, Decision)
    assert decision.verdict == "deny"


ALL_SERVICES = [f"device.{v}.{c}" for v in DEVICE_VERBS for c in class_names()]


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("", [""], ["a"]),
        ("*", ["", "a", "a:b"], []),
        ("sda", ["sda"], ["", "sd", "sda1", "xsda"]),
        ("sd*", ["sd", "sda", "sda1"], ["s", "asd"]),
        ("*1", ["1", "a1", "11"], ["", "1a"]),
        ("a*a", ["aa", "aba", "aaa"], ["a", "ab", "ba"]),
        ("ab*ba", ["abba", "ab-ba"], ["aba", "ab", "ba"]),
        ("a*b*c", ["abc", "a-b-c", "abbcc"], ["acb", "ac", "ab"]),
        ("**", ["", "a"], []),
        ("a**b", ["ab", "a-b"], ["a", "b"]),
        ("*a*a*", ["aa", "baab"], ["a", ""]),
    ],
)
def test_a_star_stands_for_any_text(glob: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not Glob(glob).matches(text)] == []
    assert [text for text in no if Glob(glob).matches(text)] == []


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_globs_agree_with_trying_everything(glob: str, text: str) -> None:
    def tried(glob: str, text: str) -> bool:
        if not glob:
            return not text
        if glob[0] == "*":
            return any(tried(glob[1:], text[n:]) for n in range(len(text) + 1))
        return text[:1] == glob[0] and tried(glob[1:], text[1:])

    assert Glob(glob).matches(text) == tried(glob, text)


def test_every_device_service_is_known_by_its_words() -> None:
    assert len(ALL_SERVICES) == 16
    for service, word in itertools.product(ALL_SERVICES, ("*", "device.*.*")):
        assert word in service_tokens(service)
    assert service_tokens("device.list.mic") == (
        "device.list.mic",
        "device.list.*",
        "device.*.mic",
        "device.*.*",
        "*",
    )
    assert service_tokens("pedos.Filecopy") == ("pedos.Filecopy", "*")
