"""The facts of VMs: read from JSON or refused with a sentence, and never changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_dom0.policy.system import System, SystemFactsError, VmFacts


def test_dom0_is_always_there() -> None:
    dom0 = System().domains["dom0"]
    assert (dom0.type, dom0.power_state) == ("AdminVM", "Running")


def test_facts_come_back_as_they_went() -> None:
    work = VmFacts("work", "DispVM", frozenset({"a", "b"}), "0-1", "dvm", True, "Halted", True)
    system = System({"work": work, "dvm": VmFacts("dvm")})
    assert System.from_json(system.to_json()) == system
    assert System.from_json({"system_info": system.to_json(), "more": 1}) == system


def test_a_system_cannot_be_changed() -> None:
    system = System({"work": VmFacts("work")})
    with pytest.raises(TypeError):
        system.domains["x"] = VmFacts("x")  # type: ignore[index]
    with pytest.raises(AttributeError):
        system.domains["work"].type = "x"  # type: ignore[misc]


def test_what_is_left_out_or_unknown_is_no_error() -> None:
    system = System.from_json({"domains": {"work": {"label": "red", "default_dispvm": ""}}})
    assert system.domains["work"] == VmFacts("work")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, 'the facts are not an object with "domains" in it'),
        ([], 'the facts are not an object with "domains" in it'),
        ({"domains": []}, 'the facts are not an object with "domains" in it'),
        ({"domains": {"work": 1}}, "the facts of 'work' are not an object"),
        ({"domains": {"": {}}}, "'' is not the name of a VM"),
        ({"domains": {"w": {"type": 1}}}, "type of 'w' is not a text of at most 256 characters"),
        ({"domains": {"w": {"tags": "x"}}}, "tags of 'w' is not a list of at most 1000 texts"),
        ({"domains": {"w": {"tags": [1]}}}, "tags of 'w' is not a list of at most 1000 texts"),
        ({"domains": {"w": {"internal": 1}}}, "internal of 'w' is not true or false"),
        ({"domains": {"w": {"default_dispvm": 1}}}, "default_dispvm of 'w' is not a text or null"),
    ],
)
def test_facts_that_are_none_are_refused_with_a_sentence(facts: Any, said: str) -> None:
    with pytest.raises(SystemFactsError) as error:
        System.from_json(facts)
    assert str(error.value) == said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["domains", "system_info", "work", "type", "tags", "internal"]), inner
    ),
    max_leaves=12,
)


@given(JSON)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_json_is_facts_or_an_error(untrusted: Any) -> None:
    try:
        system = System.from_json(untrusted)
    except SystemFactsError:
        return
    assert "dom0" in system.domains
