"""The index, the trace, the cache and a plain scan in file order agree, on random policies."""

from __future__ import annotations

import random

import pytest
from pedos_dom0.policy.decide import DECISIONS_KEPT, Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.model import Rule
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.rows import column, rows_of
from pedos_dom0.policy.selectors import DeviceParts
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System, VmFacts
from pedos_dom0.policy.yielding import never

from . import plain, random_policies

POLICIES = 40  # by each seed; `make fuzz` and .ci/run go on with others
REQUESTS = 40


def snapshot_of(text: str) -> Snapshot:
    rules, errors = parse_file("made-up.policy", text)
    assert [error.render() for error in errors] == []
    return Snapshot(rules)


@pytest.mark.parametrize("seed", range(4))
def test_index_trace_cache_and_a_plain_scan_agree(seed: int) -> None:
    rnd = random.Random(seed)
    for _ in range(POLICIES):
        text, system = random_policies.policy(rnd, 40), random_policies.system(rnd)
        snapshot = snapshot_of(text)
        decider = Decider(snapshot, system)
        for _ in range(REQUESTS):
            request = random_policies.request(rnd)
            decision = evaluate(request, snapshot, system)
            about = (text, request)
            assert decision.rule is plain.deciding(request, snapshot.rules, system), about
            traced = evaluate(request, snapshot, system, trace=True)
            assert traced.to_json() == decision.to_json(), about
            asked = (request.service, request.argument, request.source, request.target)
            assert decider.decide(*asked).to_json() == decision.to_json(), about


@pytest.mark.parametrize("seed", range(2))
def test_the_candidates_are_those_of_going_through_all_rules(seed: int) -> None:
    rnd = random.Random(seed)
    asks = 0
    for _ in range(POLICIES):
        text, system = random_policies.policy(rnd, 40), random_policies.system(rnd)
        snapshot = snapshot_of(text)
        for _ in range(REQUESTS):
            request = random_policies.request(rnd)
            decision = evaluate(request, snapshot, system)
            rule = decision.rule
            device = request.service.startswith("device.") and request.target in system.domains
            if rule is None or rule.action != "ask" or rule.outcome.target or device:
                continue
            if not rule.outcome.autostart or request.service.startswith("device."):
                continue
            expected = plain.offered(request, snapshot.rules, system)
            assert decision.candidates == expected, (text, request)
            assert decision.verdict == ("ask" if expected else "deny")
            asks += 1
    assert asks > 25


def large(rnd: random.Random) -> str:
    """So many rules that every way of keeping and narrowing rows is taken."""
    lines = [random_policies.line(rnd) for _ in range(900)]
    for number in range(900):
        argument = rnd.choice(
            (
                *(f"+sys-usb:*:{number:04x}:*", f"+work:{number}-*", f"+*:*:*u{number:04x}*"),
                *("+*:*:*u030101*", "+*:1-2.*", "+sys-usb:1-2", "+*s*:*1*", "+sys-usb:*:1050:*"),
            )
        )
        lines.append(f"device.attach.usb {argument} {rnd.choice(('dom0', '*'))} work deny")
    rnd.shuffle(lines)
    # Without most of the rules that leave nothing to those after them.
    return "\n".join(line for line in lines if " *" not in line or rnd.random() < 0.2)


@pytest.mark.parametrize("seed", range(3))
def test_a_large_policy_decides_as_going_through_all_its_rules(seed: int) -> None:
    rnd = random.Random(seed)
    snapshot, system = snapshot_of(large(rnd)), random_policies.system(rnd)
    assert len(snapshot) > 900
    for _ in range(60):
        request = random_policies.request(rnd)
        decision = evaluate(request, snapshot, system)
        assert decision.rule is plain.deciding(request, snapshot.rules, system), request
        rule = decision.rule
        if (
            rule is not None
            and rule.action == "ask"
            and rule.outcome.target is None
            and rule.outcome.autostart
            and not request.service.startswith("device.")
        ):
            assert decision.candidates == plain.offered(request, snapshot.rules, system), request
    usb = (
        f"+{vm}:{port}:{what}"
        for vm in ("sys-usb", "work")
        for port in ("1-2", "1-2.3", "7-1")
        for what in ("", "1050:0407:77:u030101", "0007:1:x:u0011", "046d:c52b:x:u008000")
    )
    for argument in usb:
        request = Request("device.attach.usb", argument, "dom0", "work")
        decision = evaluate(request, snapshot, system)
        assert decision.rule is plain.deciding(request, snapshot.rules, system), request


def test_rows_are_the_same_however_they_are_kept() -> None:
    """Many or few, at the start of a table or far into it."""
    for places in ([0], [255], [256], [5000], list(range(16)), list(range(300, 400)), [0, 9000]):
        texts = ["x"] * 9001
        for row in places:
            texts[row] = "y"
        kept = column(texts, never)
        assert rows_of(kept, ("y", "z")) == sum(1 << row for row in places)
        assert rows_of(kept, kept) == (1 << len(texts)) - 1


def test_many_rules_for_one_pair_of_vms_are_not_looked_at_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted, not timed: the rules whose argument is compared at all."""
    lines = [
        line
        for n in range(4000)
        for line in (
            f"device.attach.usb +sys-usb:{n}-1 @adminvm work deny",
            f"device.attach.usb +*:*:{n:04x}:* @adminvm work deny",
            f"device.attach.usb +vm{n}:1-* @adminvm work deny",
            f"device.attach.usb +sys-usb:*:*:u{n:04x}zz* @adminvm work deny",
            f"device.attach.usb +sys-net:{n}-1:{n:04x}:1 @adminvm work deny",
        )
    ]
    lines.append("device.attach.usb +sys-usb:1-2.3:f00d:* @adminvm work allow")
    snapshot = snapshot_of("\n".join(lines))
    looked = []
    real = Rule.takes

    def counted(self: Rule, argument: str, device: DeviceParts | None) -> bool:
        looked.append(self)
        return real(self, argument, device)

    monkeypatch.setattr(Rule, "takes", counted)
    request = Request("device.attach.usb", "+sys-usb:1-2.3:f00d:cafe:x:u080650", "dom0", "work")
    decision = evaluate(request, snapshot, System({"work": VmFacts("work")}))
    assert decision.verdict == "allow"
    assert len(looked) < 30


def test_a_cache_that_is_full_starts_again_and_still_answers() -> None:
    decider = Decider(snapshot_of("s.A * * * allow"), System({"work": VmFacts("work")}))
    for number in range(DECISIONS_KEPT + 10):
        assert decider.decide("s.A", f"+{number}", "dom0", "work").verdict == "allow"
    assert len(decider._known) == 10


def test_what_cannot_be_remembered_is_decided_all_the_same() -> None:
    decider = Decider(snapshot_of("s.A * * * allow"), System({"work": VmFacts("work")}))
    for untrusted in ([], {}, None, 3, "x" * 5000):
        assert decider.decide("s.A", "+", "dom0", untrusted).verdict == "deny"  # type: ignore[arg-type]
    assert all(len(str(key)) < 200 for key in decider._known)
