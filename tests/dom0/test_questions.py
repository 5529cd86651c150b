"""Questions without their transport: who is asked, how many may be open, and which answer
counts."""

from __future__ import annotations

from typing import Any

import pytest
from pedos_dom0.access.questions import (
    ASKER_GONE,
    COOL_DOWN,
    COOL_DOWN_WITHDRAWN,
    COOLING_MAX,
    LATE,
    NO_PROMPTER,
    OPEN_MAX,
    OPEN_PER_ASKER,
    PROMPTERS_MAX,
    SAID_NO,
    CoolDowns,
    NotNow,
    Outcome,
    Prompts,
    Question,
    judge,
    time_given,
)
from pedos_dom0.access.subjects import DeviceSubject, ServiceSubject
from pedos_dom0.tables.registry import DeviceKey
from pedos_protocol.messages import parse_params

QUESTION = Question(
    request="0123456789ab",
    source="work",
    subject=DeviceSubject("attach", DeviceKey("block", "sys-usb", "sda")),
    shown={"identity": "0781:5581", "description": "a stick", "size": 4096},
    read_only=False,
    candidates=("vault", "work"),
    default="work",
)


def test_all_that_can_be_asked_are_asked() -> None:
    prompts: Prompts[str] = Prompts()
    assert prompts.able() == []
    for name in ("first", "second", "third"):
        assert prompts.register(name, calls=name == "second")
    assert prompts.able() == ["first", "second", "third"]
    assert prompts.able(ServiceSubject.question) == ["second"]
    prompts.unregister("third")
    prompts.unregister("third")
    assert prompts.register("first", calls=True)
    assert sorted(prompts.able(ServiceSubject.question)) == ["first", "second"]
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
    for _ in range(OPEN_PER_ASKER):
        prompts.open("work")
    with pytest.raises(NotNow, match=f"work has {OPEN_PER_ASKER} questions"):
        prompts.open("work")
    for number in range(OPEN_MAX["vm"] - OPEN_PER_ASKER):
        prompts.open(f"vm{number}")
    with pytest.raises(NotNow, match=f"{OPEN_MAX['vm']} questions"):
        prompts.open("vault")
    prompts.close("work")
    prompts.open("vault")
    assert prompts.standing("work") == OPEN_PER_ASKER - 1
    assert prompts.standing() == OPEN_MAX["vm"]
    assert prompts.standing("nobody") == 0


def test_neither_vms_nor_the_desktop_keep_roots_questions_from_being_asked() -> None:
    prompts: Prompts[int] = Prompts()
    for kind, most in OPEN_MAX.items():
        for number in range(most):
            prompts.open(f"{kind} {number}", kind)
        with pytest.raises(NotNow, match=f"{most} questions are open"):
            prompts.open("one more", kind)
    for kind in ("local", "auto"):
        for _ in range(OPEN_PER_ASKER):
            prompts.open("dom0", kind)
        with pytest.raises(NotNow, match="dom0 has"):
            prompts.open("dom0", kind)


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
    asked = parse_params("prompt.ask", QUESTION.params(58.9))
    assert (asked.request, asked.source, asked.device) == ("0123456789ab", "work", "sda")
    assert (asked.candidates, asked.default, asked.timeout_s) == (("vault", "work"), "work", 59)


@pytest.mark.parametrize(
    ("outcome", "wait"),
    [
        (Outcome(None, SAID_NO), COOL_DOWN),
        (Outcome(None, LATE), COOL_DOWN),
        (Outcome(None, ASKER_GONE), COOL_DOWN_WITHDRAWN),
        (Outcome(None, NO_PROMPTER), 0),
        (Outcome("work", "dom0's user chose work"), 0),
        (None, 0),
    ],
)
def test_what_was_not_granted_is_not_asked_about_again_at_once(
    outcome: Outcome | None, wait: float
) -> None:
    cool_downs = CoolDowns()
    cool_downs.hold("work", "a stick", 100)
    with pytest.raises(NotNow, match="work is asking for the same already"):
        cool_downs.hold("work", "a stick", 101)
    cool_downs.release("work", "a stick", outcome, 110)
    if wait:
        with pytest.raises(NotNow, match=f"work was not granted it .* has to wait {wait - 1:g} s"):
            cool_downs.hold("work", "a stick", 111)
        cool_downs.hold("work", "a disk", 111)
        cool_downs.hold("vault", "a stick", 111)
    cool_downs.hold("work", "a stick", 110 + wait)


def test_a_vm_that_was_not_granted_very_much_waits_for_everything() -> None:
    cool_downs = CoolDowns()
    for number in range(COOLING_MAX):
        cool_downs.hold("work", number, number / 10)
        cool_downs.release("work", number, Outcome(None, SAID_NO), number / 10)
    with pytest.raises(NotNow, match=f"work was not granted {COOLING_MAX} things"):
        cool_downs.hold("work", "another", 20)
    cool_downs.hold("vault", "another", 20)
    cool_downs.hold("work", "another", COOL_DOWN)  # the first one may be asked about again


def test_the_time_that_a_prompter_is_given_is_rounded_up() -> None:
    assert [time_given(seconds) for seconds in (59.9999, 60, 0.2, 0, -1)] == [60, 60, 1, 0, 0]
