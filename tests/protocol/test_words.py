"""No sentence for a user contains a method's name on the wire."""

from __future__ import annotations

import re

import pytest
from pedos_protocol.messages import SCHEMA
from pedos_protocol.words import DOING, request_to, unanswered


def test_every_method_that_is_answered_has_words() -> None:
    assert DOING.keys() == {method for method, spec in SCHEMA.items() if spec.result is not None}


@pytest.mark.parametrize("method", DOING)
def test_the_words_do_not_name_the_method(method: str) -> None:
    assert not re.search(r"\w\.\w", request_to(method))
    assert unanswered(method, 5).endswith(" was not answered within 5 s")


def test_a_method_that_is_not_known_has_a_sentence_too() -> None:
    assert unanswered("x.y", 0.5) == "the request was not answered within 0.5 s"
