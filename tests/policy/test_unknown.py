"""What is unknown of a device never gets it more than it would get if it were known."""

from __future__ import annotations

import functools
import random

import pytest
from pedos_dom0.policy.evaluate import Decision, Request, evaluate
from pedos_dom0.policy.model import Rule
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.selectors import DeviceParts, Glob
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts

from . import plain, random_policies

SYSTEM = System({name: VmFacts(name) for name in ("work", "vault", "sys-usb")})
STORAGE, KEYBOARD = "u080650", "u030101"
KNOWN = f"1050:0407:S:{STORAGE}"
UNKNOWN = [f"{KNOWN}u-unknown", "1050:0407:S:u-unknown", "1050:0407", "x", ""]


@functools.lru_cache(maxsize=4)  # several tests ask the same thousands of rules
def snapshot_of(text: str) -> Snapshot:
    rules, errors = parse_file("a.policy", text)
    assert errors == []
    return Snapshot(rules)


def ask(policy: str, identity: str, target: str = "work") -> Decision:
    request = Request("device.attach.usb", f"+sys-usb:1-1:{identity}", "dom0", target)
    decision = evaluate(request, snapshot_of(policy), SYSTEM)
    traced = evaluate(request, snapshot_of(policy), SYSTEM, trace=True)
    assert traced.to_json() == decision.to_json()
    return decision


@pytest.mark.parametrize("identity", UNKNOWN)
@pytest.mark.parametrize("action", ["ask", "allow"])
def test_what_is_not_known_is_read_only_if_it_may_be(identity: str, action: str) -> None:
    policy = f"device.attach.usb +*:*:*u03* * * ask\ndevice.attach.usb * * * {action} read-only=yes"
    assert ask(policy, KNOWN).read_only
    decision = ask(policy, identity)
    assert (decision.verdict, decision.read_only) == ("ask", True)
    assert "a.policy:2" in decision.reason
    policy = f"device.attach.usb +*:*:*u03* * * {action} read-only=yes\ndevice.attach.usb * * * ask"
    assert ask(policy, identity).read_only


@pytest.mark.parametrize("identity", UNKNOWN)
@pytest.mark.parametrize("action", ["ask", "allow"])
@pytest.mark.parametrize("other", ["target=vault", "autostart=no", "user=root"])
def test_of_outcomes_that_differ_none_is_taken_and_both_are_named(
    identity: str, action: str, other: str
) -> None:
    policy = f"device.attach.usb +*:*:*u03* * * ask\ndevice.attach.usb * * * {action} {other}"
    decision = ask(policy, identity)
    assert decision.verdict == "deny"
    assert "a.policy:1 says ask, but a.policy:2 may match" in decision.reason


#: What the unknown kinds may turn out to be, and the heads of which nothing is known.
ENDS = ("", STORAGE, KEYBOARD, KEYBOARD + STORAGE, "uff0000", "u0e0100uff0000" + KEYBOARD)
HEADS = ("0781:5581:x", "1050:0407:77", "046d:c52b:x", "1:2:S")


def completions(identity: str) -> list[str]:
    head, mark, _ = identity.partition("u-unknown")
    if mark or identity.count(":") >= 3:
        return [f"{head}{end}" for end in ENDS if not head.endswith(":") or end]
    return [f"{head}:{end}" for head in HEADS for end in ENDS if end]


def gives_no_more(now: Decision, then: Decision) -> bool:
    """`then` is what it gets when all is known."""
    if now.verdict == "deny":
        return True
    same = (now.user, now.autostart) == (then.user, then.autostart)
    if not same or then.verdict == "deny" or (then.read_only and not now.read_only):
        return False
    if now.verdict == "allow":
        return (then.verdict, then.target) == ("allow", now.target)
    return set(now.candidates) <= {*then.candidates, then.target}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_unknown_is_it_gets_no_more_than_when_it_is_known(seed: int) -> None:
    """With the rule that a plain reading of the file gives for what is known."""
    rnd = random.Random(seed)
    given = 0
    for _ in range(20):
        lines = [
            line + " read-only=yes" * (rnd.random() < 0.3 and " deny" not in line)
            for line in random_policies.policy(rnd, 40).split("\n")
            # A rule may speak of what is not known itself, and then is not about what it may be.
            if line.startswith("device.") and "unknown" not in line
        ]
        lines.append(f"device.attach.usb * * * {rnd.choice(('allow', 'ask', 'deny'))}")
        policy = "\n".join(lines)
        snapshot, system = snapshot_of(policy), random_policies.system(rnd)
        for _ in range(30):
            identity = rnd.choice(
                ("0781:5581:x:u-unknown", "0781:5581:x:u080650u-unknown", "1:2:S:", "046d:c52b", "")
            )
            port, source = rnd.choice(random_policies.PORTS), rnd.choice(random_policies.NAMES)
            target = rnd.choice((*random_policies.NAMES, "@default"))

            def request(
                identity: str, port: str = port, source: str = source, target: str = target
            ) -> Request:
                argument = f"+sys-usb:{port}:{identity}"
                return Request("device.attach.usb", argument, source, target)

            now = evaluate(request(identity), snapshot, system)
            given += now.verdict != "deny"
            for known in completions(identity):
                then = evaluate(request(known), snapshot, system)
                assert then.rule is plain.deciding(request(known), snapshot.rules, system)
                assert gives_no_more(now, then), (policy, request(identity), known, now, then)
    assert given > 30


@pytest.mark.parametrize("identity", ["", "1050:0407", "x", "::"])
@pytest.mark.parametrize("last", ["allow", "deny", ""])
@pytest.mark.parametrize("target", ["work", "@default"])
def test_a_device_that_is_not_there_costs_what_different_outcomes_there_are_and_not_rules(
    identity: str, last: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any VM can ask for one. Counted, not timed."""
    lines = [
        line
        for n in range(3000)
        for line in (
            f"device.attach.usb +sys-usb:*:{n:04x}:*:S{n}:u080650 work work ask",
            f"device.attach.usb +sys-usb:*:{n:04x}:*:only=u08* work @anyvm ask autostart=no",
            f"device.attach.usb +sys-usb:{n}-1 work * deny",
            f"device.attach.usb +sys-usb:{n}-3:{n:04x}:* work @default ask",
        )
    ]
    if last:
        lines.append(f"device.attach.usb * work work {last}")
    snapshot, looked = snapshot_of("\n".join(lines)), []
    for kind, name in ((Rule, "takes_open"), (Rule, "takes"), (Glob, "matches")):
        real = getattr(kind, name)

        def counted(self: Rule | Glob, *arguments: object, real: object = real) -> object:
            looked.append(self)
            return real(self, *arguments)  # type: ignore[operator]

        monkeypatch.setattr(kind, name, counted)
    request = Request("device.attach.usb", f"+sys-usb:7-2:{identity}", "work", target)
    assert evaluate(request, snapshot, SYSTEM).verdict == "deny"
    assert len(looked) < 100


def test_a_place_that_was_looked_for_before_is_not_mistaken_for_another() -> None:
    snapshot = snapshot_of(
        "device.attach.usb +*:1-1 * * ask\ndevice.attach.usb +*:1-* * * deny\n"
        "device.attach.usb +sys-usb:2-*:1050:* * * ask\ndevice.attach.usb +sys-usb * * ask"
    )
    verdicts = {"1-1": "ask", "1-2": "deny", "2-1": "ask", "3": "ask"}
    for port in [*verdicts, *reversed(verdicts), "4"]:
        request = Request("device.attach.usb", f"+sys-usb:{port}:", "dom0", "work")
        assert evaluate(request, snapshot, SYSTEM).verdict == verdicts.get(port, "ask"), port
        part = DeviceParts("sys-usb", port, "")
        request = Request("device.attach.usb", f"+work:{port}:", "dom0", "work")
        verdict = "deny" if port not in ("1-1", "1-2") else verdicts[part.port]
        assert evaluate(request, snapshot, SYSTEM).verdict == verdict


@pytest.mark.parametrize("seed", range(3))
def test_adding_what_is_not_known_never_turns_a_deny_into_anything_else(seed: int) -> None:
    """Whether a rule is about one kind, or about these alone."""
    rnd = random.Random(seed)
    identities = (
        *("*", "*u03*", "*u08*", "only=u08*", "only=u08*,u03*", "only=u03*", "0781:*:only=u0806*"),
        *("*:*:*:*u0e*", "*:u080650", "*u030101", "1050:*", "0781:5581:x:u080650"),
    )
    denied = 0
    for _ in range(40):
        lines = [
            f"device.attach.usb +{rnd.choice(('*', 'sys-usb'))}:*:{rnd.choice(identities)} * "
            f"{rnd.choice(('*', 'work'))} {rnd.choice(('allow', 'ask', 'deny'))}"
            for _ in range(6)
        ]
        policy = "\n".join(lines)
        for known in ("0781:5581:x:u080650", "1:2:S:u080650u030101", "0781:5581:x:u0e0100"):
            if ask(policy, known).verdict == "deny":
                denied += 1
                assert ask(policy, f"{known}u-unknown").verdict == "deny", (policy, known)
    assert denied > 20


@pytest.mark.parametrize("identity", UNKNOWN)
@pytest.mark.parametrize("action", ["deny", "ask"])
def test_only_these_kinds_is_closed_in_both_directions(identity: str, action: str) -> None:
    """A rule that allows does not match what is not known, and one that denies or asks does."""
    rule = "device.attach.usb +*:*:only=u08*,u03* * * {}\n"
    assert ask(rule.format("allow"), identity).verdict == "deny"
    after = "device.attach.usb * * * allow"
    assert ask(rule.format(action) + after, identity).verdict == action
