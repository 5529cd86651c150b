"""Every case of the reference implementation: verdict, line and parameters.

PEDOS_POLICY_CASES names the file (gzipped or not); without it, the shared one beside the project
is read where it is there. The messages' wording is the reference's own.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pedos_dom0.policy.system import System

from .outcomes import expected, outcome

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


def test_every_case_of_the_reference() -> None:
    head, *rest = cases()
    system = System.from_json(head)
    assert System.from_json(system.to_json()) == system
    wrong = []
    for case in rest:
        got, wanted = outcome(case, system), expected(case)
        if "line" not in wanted:
            got.pop("line", None)
        if got != wanted:
            wrong.append({"case": case, "got": got, "wanted": wanted})
    assert wrong[:SHOWN] == [], f"{len(wrong)} of {len(rest)} cases differ"
    assert len(rest) > 0
