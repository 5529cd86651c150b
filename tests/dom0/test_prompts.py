"""Questions without their transport: who is asked, how many may stand, and which answer counts."""

from __future__ import annotations

from typing import Any

import pytest
from pedos_dom0.prompts import (
    OPEN_MAX,
    OPEN_PER_SOURCE,
    PROMPTERS_MAX,
    Prompts,
    Question,
    TooMany,
    judge,
)
from pedos_dom0.registry import DeviceKey
from pedos_protocol.messages import parse_params

QUESTION = Question(
    request="0123456789ab",
    source="work",
    service="device.attach.block",
    key=DeviceKey("block", "sys-usb", "sda"),
    identity="0781:5581",
    description="a stick",
    size=4096,
    read_only=False,
    candidates=("vault", "work"),
    default="work",
)


def test_the_one_that_registered_last_is_asked_and_then_the_one_before() -> None:
    prompts: Prompts[str] = Prompts()
    assert prompts.last() is None
    for name in ("first", "second", "third"):
        assert prompts.register(name)
    assert prompts.last() == "third"
    assert prompts.last(["third"]) == "second"
    prompts.unregister("third")
    prompts.unregister("third")
    assert prompts.last() == "second"
    assert prompts.register("first")
    assert prompts.last() == "first"
    assert len(prompts) == 2


def test_prompters_are_bounded() -> None:
    prompts: Prompts[int] = Prompts()
    assert all(prompts.register(number) for number in range(PROMPTERS_MAX))
    assert not prompts.register(PROMPTERS_MAX)
    assert prompts.register(0)
    prompts.unregister(1)
    assert prompts.register(PROMPTERS_MAX)


def test_the_questions_of_one_vm_and_of_all_are_bounded() -> None:
    prompts: Prompts[int] = Prompts()
    for _ in range(OPEN_PER_SOURCE):
        prompts.open("work")
    with pytest.raises(TooMany, match=f"work has {OPEN_PER_SOURCE} questions"):
        prompts.open("work")
    for number in range(OPEN_MAX - OPEN_PER_SOURCE):
        prompts.open(f"vm{number}")
    with pytest.raises(TooMany, match=f"{OPEN_MAX} questions"):
        prompts.open("vault")
    prompts.close("work")
    prompts.open("vault")
    assert prompts.standing("work") == OPEN_PER_SOURCE - 1
    assert prompts.standing() == OPEN_MAX
    assert prompts.standing("nobody") == 0


@pytest.mark.parametrize("vm", QUESTION.candidates)
def test_a_candidate_is_a_yes(vm: str) -> None:
    outcome = judge(QUESTION, {"verdict": "allow", "target": vm})
    assert (outcome.verdict, outcome.target) == ("allow", vm)


@pytest.mark.parametrize(
    "untrusted_answer",
    [
        {"verdict": "deny", "target": None},
        {"verdict": "deny", "target": "work"},
        {"verdict": "allow", "target": None},
        {"verdict": "allow", "target": "sys-usb"},
        {"verdict": "allow", "target": "WORK"},
        {"verdict": "allow", "target": ["work"]},
        {"verdict": "ask", "target": "work"},
        {"verdict": True, "target": "work"},
        {"verdict": "allow"},
        {"verdict": "allow", "target": "work", "also": "vault"},
        {},
        [],
        None,
        "allow",
        5,
    ],
)
def test_everything_else_is_a_no(untrusted_answer: Any) -> None:
    outcome = judge(QUESTION, untrusted_answer)
    assert (outcome.verdict, outcome.target) == ("deny", None)
    assert outcome.reason


def test_a_question_says_all_that_there_is_to_know() -> None:
    asked = parse_params("prompt.ask", QUESTION.params(59.9))
    assert (asked.request, asked.source, asked.device) == ("0123456789ab", "work", "sda")
    assert (asked.candidates, asked.default, asked.timeout_s) == (("vault", "work"), "work", 59)
