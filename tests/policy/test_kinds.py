"""What is unknown of a device makes a rule that denies or asks match more, and none allows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_dom0.policy import evaluate as evaluate_module
from pedos_dom0.policy.evaluate import Decision, Request, evaluate
from pedos_dom0.policy.model import Rule
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.selectors import DeviceParts, Glob, match_open, selector
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_protocol.kinds import KINDS_MAX, Open, open_part, with_kinds
from pedos_protocol.names import is_identity

from . import random_policies

SYSTEM = System({name: VmFacts(name) for name in ("work", "vault", "sys-usb")})
SHIPPED = Path(evaluate_module.__file__).parents[1] / "policy.d/90-default.policy"
STORAGE, KEYBOARD = "u080650", "u030101"


def snapshot_of(text: str | bytes) -> Snapshot:
    rules, errors = parse_file("a.policy", text)
    assert errors == []
    return Snapshot(rules)


def ask(policy: str | bytes, identity: str, target: str = "work", verb: str = "attach") -> Decision:
    request = Request(f"device.{verb}.usb", f"+sys-usb:1-1:{identity}", "dom0", target)
    snapshot = snapshot_of(policy)
    decision = evaluate(request, snapshot, SYSTEM)
    assert evaluate(request, snapshot, SYSTEM, trace=True).to_json() == decision.to_json()
    return decision


UNKNOWN = [
    "1234:5678:S:u080650u-unknown",
    "1234:5678:S:u-unknown",
    "1234:5678:S:",
    "1234:5678:S:u080650u03",
    "1234:5678",
    "",
]


@pytest.mark.parametrize("verb", ["attach", "assign"])
@pytest.mark.parametrize("identity", UNKNOWN)
def test_what_does_not_fit_or_is_not_known_makes_a_rule_match_more(
    identity: str, verb: str
) -> None:
    shipped = SHIPPED.read_bytes()
    assert ask(shipped, identity, verb=verb).verdict == "ask"
    assert ask(shipped, f"1234:5678:S:{STORAGE}", verb=verb).verdict == "allow"


@pytest.mark.parametrize("identity", UNKNOWN)
def test_what_is_not_known_is_not_allowed_as_one_of_only_these_kinds(identity: str) -> None:
    policy = "device.attach.usb +sys-usb:*:only=u08* dom0 work allow"
    assert ask(policy, f"1234:5678:S:{STORAGE}").verdict == "allow"
    assert ask(policy, f"1234:5678:S:{STORAGE}{KEYBOARD}").verdict == "deny"
    assert ask(policy, identity).verdict == "deny"
    assert ask(policy + "\ndevice.attach.usb * dom0 work ask", identity).verdict == "ask"


@pytest.mark.parametrize("identity", UNKNOWN)
def test_a_question_about_what_is_not_known_does_not_stand_before_a_deny(identity: str) -> None:
    policy = "device.attach.usb +*:*:*u03* * * ask\ndevice.attach.usb +*:*:*ue0* * * deny"
    decision = ask(policy + "\ndevice.attach.usb * * * allow", identity)
    assert (decision.verdict, decision.rule and decision.rule.line) == ("deny", 2)
    assert "not all kinds" in decision.reason


@pytest.mark.parametrize("identity", UNKNOWN)
def test_of_two_ways_to_allow_what_is_not_known_none_is_taken(identity: str) -> None:
    policy = "device.attach.usb +*:*:*u03* * * allow target=vault\ndevice.attach.usb * * * allow"
    decision = ask(policy, identity)
    assert decision.verdict == "deny"
    assert "a.policy:1 may match before it" in decision.reason
    same = "device.attach.usb +*:*:*u03* * * allow\ndevice.attach.usb * * * allow"
    assert ask(same, identity).verdict == "allow"


def test_a_rule_can_be_about_the_unknown_itself() -> None:
    policy = "device.attach.usb +*:*:*u-unknown * * deny\ndevice.attach.usb * * * allow"
    assert ask(policy, "1:2:S:u-unknown").rule is not None
    assert ask(policy, "1:2:S:u-unknown").verdict == "deny"
    assert ask(policy, f"1:2:S:{STORAGE}").verdict == "allow"


def test_what_cannot_be_what_a_rule_names_is_not_taken_for_it() -> None:
    """Vendor, product and serial number are known, and what follows is made of kinds alone."""
    policy = "device.attach.usb +*:*:{} * * deny\ndevice.attach.usb * * * allow"
    known = "1234:5678:S:u-unknown"
    for identity in ("1050:*", "*:1050:*", "*Kingston*", "1234:5678:T:*", "*:*:*:p03*"):
        assert ask(policy.format(identity), known).verdict == "allow", identity
    for identity in ("1234:*", "*:S:*", "*:S:u03*", "*0301*", "*03*01", "1234:5678:S:u030101"):
        assert ask(policy.format(identity), known).verdict == "deny", identity


def test_only_those_vms_are_offered_that_get_it_whatever_it_is() -> None:
    policy = """device.attach.usb +*:*:*u03* dom0 vault deny
device.attach.usb +*:*:only=u08* dom0 work allow
device.attach.usb * dom0 @anyvm ask"""
    assert ask(policy, f"1:2:S:{STORAGE}", "@default").candidates == ("sys-usb", "vault", "work")
    assert ask(policy, "1:2:S:u-unknown", "@default").candidates == ("sys-usb", "work")
    uncertain = "device.attach.usb +*:*:*u08* dom0 work allow\ndevice.attach.usb * dom0 vault ask"
    policy = f"{uncertain}\ndevice.attach.usb * dom0 @default ask"
    assert ask(policy, "1:2:S:u-unknown", "@default").candidates == ("vault",)


@pytest.mark.parametrize("identity", ["1234:5678:S:u-unknown", "1234:5678:S:"])
def test_many_rules_are_not_looked_at_one_by_one_for_what_is_not_known(
    identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed, as for what is known."""
    lines = [
        line
        for n in range(2000)
        for line in (
            f"device.attach.usb +sys-usb:*:*:*:S{n}:*u{n % 256:02x}* dom0 work deny",
            f"device.attach.usb +sys-usb:*:{n:04x}:*:only=u{n:04x}* dom0 work allow",
            f"device.attach.usb +sys-usb:{n}-1 dom0 work deny",
        )
    ]
    snapshot = snapshot_of("\n".join([*lines, "device.attach.usb * dom0 work allow"]))
    looked = []
    real = Rule.takes_open

    def counted(self: Rule, device: DeviceParts) -> int:
        looked.append(self)
        return real(self, device)

    monkeypatch.setattr(Rule, "takes_open", counted)
    request = Request("device.attach.usb", f"+sys-usb:7-2:{identity}", "dom0", "work")
    assert evaluate(request, snapshot, SYSTEM).verdict == "allow"
    assert len(looked) < 60


# Short texts, so that every way to go on can be tried.
FILL = "u0"
globs = st.text("u01:*", max_size=5)
known_texts = st.text("u01:", max_size=4)
ENDS = ["".join(end) for size in range(6) for end in itertools.product(FILL, repeat=size)]


@given(globs, known_texts)
def test_possibly_and_certainly_are_what_trying_all_gives(glob: str, known: str) -> None:
    device = Open(f"{known}u-unknown", known, FILL)
    tried = [Glob(glob).matches(known + end) for end in ENDS]
    assert Glob(glob).possibly(device) == any(tried) or Glob(glob).matches(device.identity)
    if Glob(glob).certainly(device):
        assert all(tried)
    elif all(tried):
        # It is not told that something follows for certain; and no rule needs that.
        assert glob.endswith("*")
    anything = DeviceParts("sys-usb", "1-1", known, None, Open(known, "", None))
    assert match_open(f"+*:*:{glob}", anything) or not any(tried)


@given(st.lists(st.sampled_from([STORAGE, KEYBOARD, "u", "u0801", "x", "p0c0330", None])))
def test_kinds_are_whole_or_said_to_be_unknown(kinds: list[str | None]) -> None:
    identity = with_kinds("1:2:S", "usb", kinds)
    assert is_identity(identity)
    good = kinds and all(kind is not None and len(kind) == 7 for kind in kinds)
    assert (open_part("usb", identity) is None) == bool(good) or "p0c0330" in kinds


def test_a_device_of_another_class_has_no_kinds() -> None:
    assert open_part("block", "") is None
    assert open_part("mic", "") is None
    assert open_part("pci", "8086:1234::p0c0330") is None
    assert open_part("pci", "8086:1234::p") is not None
    assert len(with_kinds("1:2:3", "usb", [f"u{n:06x}" for n in range(99)])) < 7 * KINDS_MAX + 20


def test_the_made_up_policies_speak_of_the_unknown() -> None:
    assert (
        sum(open_part("usb", identity) is not None for identity in random_policies.IDENTITIES) > 3
    )
    assert selector("+sys-usb:*:only=u08*").checks
