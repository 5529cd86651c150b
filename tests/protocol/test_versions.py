"""What came with version 2 is marked in the schemas, and version 1 is told nothing of it."""

from __future__ import annotations

from typing import Any

import attr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_protocol.connection import VERSIONS
from pedos_protocol.errors import CallError
from pedos_protocol.fields import is_optional, version_of
from pedos_protocol.messages import SCHEMA, parse_params, parse_result, to_wire
from pedos_protocol.schema import in_version

from . import strategies
from .version_1 import MESSAGES, wrong_in_1

# Version 2 has another way to watch; a client in dom0 that uses the former one is told so.
GONE = {"device.watch", "device.event"}
IN_1 = [spoken for spoken in strategies.SPOKEN if spoken[0] in MESSAGES]
# A notice to prompters, and what dom0 and the machine of local mode say to each other, is not
# looked at again before it is sent.
AS_IT_IS = ("prompt.cancel", *(each for each in SCHEMA if each.startswith("domain.")))


def test_a_method_of_another_version_than_the_first_says_so() -> None:
    assert {method for method, spec in SCHEMA.items() if spec.since == 1} == MESSAGES.keys() - GONE
    assert {spec.since for spec in SCHEMA.values()} == set(range(VERSIONS[0], VERSIONS[1] + 1))


@pytest.mark.parametrize(("method", "part", "message_class"), IN_1)
@settings(max_examples=8)
@given(data=st.data())
def test_a_message_for_version_1_has_exactly_what_that_version_had(
    method: str, part: str, message_class: type[Any], data: st.DataObject
) -> None:
    wire = to_wire(data.draw(strategies.message(message_class)))
    in_part = SCHEMA.params_in if part == "params" else SCHEMA.result_in
    assert wrong_in_1(MESSAGES[method][part], in_part(1, method, wire)) is None


@pytest.mark.parametrize(("method", "part", "message_class"), IN_1)
@settings(max_examples=8)
@given(data=st.data())
def test_a_message_of_version_1_is_read_and_what_it_lacks_has_its_default(
    method: str, part: str, message_class: type[Any], data: st.DataObject
) -> None:
    said = data.draw(strategies.message(message_class))
    parse = parse_params if part == "params" else parse_result
    parsed = parse(method, in_version(1, message_class, to_wire(said)))
    for attribute in attr.fields(message_class):
        if version_of(attribute) > 1:
            assert getattr(parsed, attribute.name) == attribute.default
    assert in_version(1, message_class, to_wire(parsed)) == in_version(
        1, message_class, to_wire(said)
    )


@pytest.mark.parametrize(("method", "part", "message_class"), strategies.SPOKEN)
def test_what_came_later_has_a_default(method: str, part: str, message_class: type[Any]) -> None:
    for attribute in attr.fields(message_class):
        assert 1 <= version_of(attribute) <= VERSIONS[1]
        assert attribute.default is not attr.NOTHING or not is_optional(attribute)


def test_for_the_newest_version_nothing_is_left_out_nor_copied() -> None:
    report = {"revision": 1, "page": 0}
    assert SCHEMA.params_in(VERSIONS[1], "agent.report", report) is report


def test_a_method_that_came_later_is_refused_before_it_is_sent() -> None:
    with pytest.raises(CallError, match=r"older and does not know the method report\.prefer"):
        SCHEMA.params_in(1, "report.prefer", {"devices": []})


@pytest.mark.parametrize("method", AS_IT_IS)
def test_what_is_sent_as_it_is_to_programs_of_any_version_has_nothing_newer(method: str) -> None:
    spec = SCHEMA[method]
    for message_class in (spec.params, spec.result):
        if message_class is not None:
            assert {version_of(each) for each in attr.fields(message_class)} <= {1}
