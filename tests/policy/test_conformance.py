"""Every case of the reference implementation: verdict, line and parameters.

PEDOS_POLICY_CASES names the file (gzipped or not); without it, the shared one beside the project
is read where it is there. The messages' wording is the reference's own.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pedos_dom0.policy.decide import Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System

SHARED = Path(__file__).parents[3] / "shared" / "conformance" / "policy-cases.jsonl.gz"
SHOWN = 5  # cases that a failure shows


def cases() -> list[Any]:
    named = os.environ.get("PEDOS_POLICY_CASES")
    path = Path(named) if named else SHARED
    if not named and not path.exists():
        pytest.skip("PEDOS_POLICY_CASES names no file of cases, and the shared one is not here")
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    return [json.loads(line) for line in data.splitlines() if line.strip()]


def line_of(message: str) -> int | None:
    found = re.search(r"<policy>:(\d+)", message)
    return int(found[1]) if found else None


def outcome(case: Any, system: System) -> tuple[dict[str, Any], dict[str, Any]]:
    """What came out, and what should have."""
    expected = case["expect"]
    rules, errors = parse_file("<policy>", case["policy"])
    if errors:
        got: dict[str, Any] = {"r": "syntax_error", "line": errors[0].line}
    else:
        got = decided(case, Snapshot(rules), system)
    wanted = dict(expected)
    message = wanted.pop("msg", None)
    if expected["r"] == "syntax_error":
        wanted["line"] = line_of(message)
    elif expected["r"] == "deny":
        wanted["line"] = line_of(message)
        if wanted["line"] is None and message != "no matching rule found":
            # Denied by the redirect or the start that a rule called for: which rule is not said.
            got.pop("line", None)
            wanted.pop("line")
    return got, wanted


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


def test_every_case_of_the_reference() -> None:
    head, *rest = cases()
    system = System.from_json(head)
    assert System.from_json(system.to_json()) == system
    wrong = []
    for case in rest:
        got, wanted = outcome(case, system)
        if got != wanted:
            wrong.append({"case": case, "got": got, "wanted": wanted})
    assert wrong[:SHOWN] == [], f"{len(wrong)} of {len(rest)} cases differ"
    assert len(rest) > 0
