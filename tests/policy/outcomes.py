"""The engine's result for a case, in the form of the reference's expectations."""

from __future__ import annotations

import re
from typing import Any

from pedos_dom0.policy.decide import Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System


def line_of(message: str) -> int | None:
    found = re.search(r"<policy>:(\d+)", message)
    return int(found[1]) if found else None


def expected(case: Any) -> dict[str, Any]:
    """What should come out; `line` is missing where the reference does not say it."""
    wanted = dict(case["expect"])
    message = wanted.pop("msg", None)
    if message is None:
        return wanted
    line = line_of(message)
    # Denied by the redirect or the start that a rule called for: which rule is not said.
    if line is not None or message == "no matching rule found":
        wanted["line"] = line
    return wanted


def outcome(case: Any, system: System) -> dict[str, Any]:
    """What comes out."""
    rules, errors = parse_file("<policy>", case["policy"])
    if errors:
        return {"r": "syntax_error", "line": errors[0].line}
    return decided(case, Snapshot(rules), system)


def decided(case: Any, snapshot: Snapshot, system: System) -> dict[str, Any]:
    request = Request(case["service"], case["arg"], case["source"], case["target"])
    decision = evaluate(request, snapshot, system)
    traced = evaluate(request, snapshot, system, trace=True)
    assert decision.to_json() == traced.to_json(), "the index and reading in order disagree"
    decider = Decider(snapshot, system)
    asked = (request.service, request.argument, request.source, request.target)
    assert decider.decide(*asked).to_json() == decider.decide(*asked).to_json()
    line = None if decision.rule is None else decision.rule.line
    if decision.verdict == "deny":
        return {"r": "deny", "notify": decision.notify, "line": line}
    common = {
        "r": decision.verdict,
        "line": line,
        "user": decision.user,
        "autostart": decision.autostart,
        "notify": decision.notify,
    }
    if decision.verdict == "allow":
        return {**common, "target": decision.target}
    return {
        **common,
        "targets": list(decision.candidates),
        "default": decision.default_target,
    }
