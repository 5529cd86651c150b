"""Policies as plain files: good ones that ask their own questions, and bad ones with their errors.

corpus/good/X.policy, or the folder corpus/good/X, has `#> SERVICE ARGUMENT SOURCE TARGET = VERDICT
[LINE [NAME=VALUE ...]]` in comments, no line being the default deny; the VMs are those of
system.json. corpus/bad/X.policy, or the folder corpus/bad/X, has everything that is wrong with it
in X.expected, as a terminal shows it. `python -m tests.policy.test_corpus` writes those anew, to be
read before they are kept.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pedos_dom0.policy.decision import Decision
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.reading import read_policy
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.policy.system import System

CORPUS = Path(__file__).parent / "corpus"
SYSTEM = System.from_json(json.loads((CORPUS / "system.json").read_text()))
# Where nothing is, so that no release 4.0 files of this machine are read.
NO_LEGACY = CORPUS / "none"


def cases(kind: str) -> list[Path]:
    return sorted(p for p in (CORPUS / kind).iterdir() if p.is_dir() or p.suffix == ".policy")


GOOD, BAD = cases("good"), cases("bad")


def errors_of(path: Path) -> list[str]:
    if path.is_dir():
        errors = list(read_policy([path], legacy=NO_LEGACY).errors)
    else:
        _, errors = parse_file(path.name, path.read_bytes())
    return [line.rstrip() for error in errors for line in error.render().splitlines()]


def described(decision: Decision, name: str) -> str | None:
    """A NAME=VALUE of a question's answer."""
    if name == "candidates":
        return ",".join(decision.candidates)
    if name == "default":
        return decision.default_target
    if name in ("target", "user"):
        return str(getattr(decision, name))
    if name in ("notify", "autostart"):
        return "yes" if getattr(decision, name) else "no"
    return decision.parameters.get(name)


def ask(path: Path, text: str, snapshot: Snapshot, file: str) -> None:
    for line in text.splitlines():
        if not line.startswith("#>"):
            continue
        question, _, answer = line[2:].partition(" = ")
        verdict, *rest = answer.split()
        request = Request(*question.split())
        decision = evaluate(request, snapshot, SYSTEM)
        assert decision.verdict == verdict, line
        where = decision.rule.where if decision.rule is not None else None
        if not rest:
            assert where is None, line
        elif ":" in rest[0]:
            assert where == rest[0], line
        else:
            assert where == f"{file}:{rest[0]}", line
        for parameter in rest[1:]:
            name, _, value = parameter.partition("=")
            assert described(decision, name) == value, line
        traced = evaluate(request, snapshot, SYSTEM, trace=True)
        assert traced.to_json() == decision.to_json(), line


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_policy_answers_its_own_questions(path: Path) -> None:
    if path.is_dir():
        loaded = read_policy([path / "run", path / "etc"], legacy=path / "legacy")
        assert [error.render() for error in loaded.errors] == []
        ask(path, (path / "questions").read_text(), loaded.snapshot, "")
    else:
        rules, errors = parse_file(path.name, path.read_bytes())
        assert errors == []
        ask(path, path.read_text("utf-8"), Snapshot(rules), path.name)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_policy_gets_every_one_of_its_errors(path: Path) -> None:
    expected = path.with_suffix(".expected").read_text("utf-8").splitlines()
    assert errors_of(path) == expected


def test_the_corpus_is_there() -> None:
    assert len(GOOD) >= 10
    assert len(BAD) >= 10


if __name__ == "__main__":
    for bad in BAD:
        bad.with_suffix(".expected").write_text("".join(f"{line}\n" for line in errors_of(bad)))
