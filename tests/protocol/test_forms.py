"""The forms that C checks values by: what they let pass is what a function returns as it is."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol import forms, names
from pedos_protocol._wire import Form, take_list, take_map
from pedos_protocol.fields import PLAIN, Parse
from pedos_protocol.forms import Plain

CASES = [pytest.param(parse, plain, id=parse.__name__) for parse, plain in PLAIN.items()]
TEXTS = [
    pytest.param(parse, plain, id=parse.__name__)
    for parse, plain in PLAIN.items()
    if plain.kind == "t"
]

NUMBERS = [bound + step for p in PLAIN.values() for bound in (p.low, p.high) for step in (-1, 0, 1)]
ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60)),
    *(st.binary(max_size=5), st.lists(st.none(), max_size=2), st.just({}), st.just(())),
    st.sampled_from(NUMBERS),
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.from_regex(r"[+@._A-Za-z0-9-]{1,33}", fullmatch=True),
)


class Text(str):
    __slots__ = ()


def fits(plain: Plain, value: object) -> bool:
    return take_list((Form(*plain),), (value,)) == (value,)


@pytest.mark.parametrize(("parse", "plain"), CASES)
@given(value=ANYTHING)
def test_what_fits_is_right_as_it_is(parse: Parse, plain: Plain, value: object) -> None:
    if fits(plain, value):
        made = parse(value)
        assert (made, type(made)) == (value, type(value))


@pytest.mark.parametrize(("parse", "plain"), TEXTS)
def test_each_character_and_each_length_is_as_the_function_has_it(
    parse: Parse, plain: Plain
) -> None:
    middle = plain.rest[:1] * max(0, plain.low - 2)
    for number in [*range(0x180), 0x2028, 0xD800, 0x10FFFF]:
        first, rest = chr(number), plain.first[:1]
        for text in (first + middle + plain.rest[:1], rest + middle + first):
            assert fits(plain, text) <= is_as_it_is(parse, text), ascii(text)
            if text.isascii() and len(text) == plain.low:
                assert fits(plain, text) == is_as_it_is(parse, text), ascii(text)
    for length in (0, 1, plain.low, plain.high, plain.high + 1):
        text = plain.first[:1] + plain.rest[:1] * (length - 1) if length else ""
        assert fits(plain, text) == (plain.low <= length <= plain.high)
        assert fits(plain, text) <= is_as_it_is(parse, text)


def is_as_it_is(parse: Parse, value: object) -> bool:
    try:
        return bool(parse(value) == value)
    except ValueError:
        return False


def test_no_other_type_passes_for_one() -> None:
    assert not fits(forms.VM_NAME, Text("work"))
    assert not fits(forms.integer(0, 1), True)
    assert not fits(forms.integer(0, 1), 1.0)
    assert not fits(forms.FLAG, 1)
    assert not fits(forms.REAL, 1)
    assert not fits(forms.REAL, math.nan)
    assert not fits(forms.one_of(("a", "b")), Text("a"))
    assert not fits(forms.one_of(("a", "b")), ["a"])
    assert not fits(forms.integer(0, 1), 2**70)
    assert not fits(forms.OTHER, "a")


def refuse(value: object) -> Any:
    raise ValueError(f"not {value!r}")


def fail(_: object) -> Any:
    raise RuntimeError("of another kind")


def test_what_does_not_fit_is_for_the_function() -> None:
    form = Form(*forms.integer(0, 1), parse=lambda value: [value])
    assert take_list((form, form), (1, 2)) == (1, [2])
    assert take_map({"a": form, "b": form}, {"b": 3, "a": 0}) == {"a": 0, "b": [3]}
    wrong = Form(*forms.integer(0, 1), parse=refuse)
    assert take_list((wrong,), (2,)) is None
    with pytest.raises(ValueError, match=r"^a: not 'x'$"):
        take_map({"a": wrong}, {"a": "x"})
    with pytest.raises(ValueError, match=r"^a: there is no such value$"):
        take_map({"a": Form("f")}, {"a": 1})
    broken = Form("o", parse=fail)
    with pytest.raises(RuntimeError, match="another kind"):
        take_list((broken,), (2,))
    with pytest.raises(RuntimeError, match="another kind"):
        take_map({"a": broken}, {"a": 2})


def test_none_passes_where_a_value_may_be_missing() -> None:
    assert take_list((Form("f", may_be_none=True),), (None,)) == (None,)
    assert take_list((Form("f"),), (None,)) is None


def test_other_names_and_other_numbers_of_values_are_not_taken() -> None:
    flag = Form("f")
    assert take_map({"a": flag}, {"b": True}) is None
    assert take_map({"a": flag}, {"a": True, "b": True}) is None
    assert take_map({"a": flag}, {}) is None
    assert take_map({"a": flag}, {1: True}) is None
    assert take_list((flag,), ()) is None
    assert take_list((flag,), (True, True)) is None
    assert (take_map({}, {}), take_list((), ())) == ({}, ())


@pytest.mark.parametrize("arguments", [(), ("",), ("tt",), ("t", 0, 0, "\xe9"), ("t", "0")])
def test_a_form_that_is_none_is_not_made(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Form(*arguments)
    with pytest.raises(TypeError):
        take_list(cast("tuple[Form, ...]", (1,)), (1,))


def test_the_function_is_asked_about_keywords_and_other_scripts() -> None:
    assert not fits(forms.CALL_TARGET, "@default")
    assert names.parse_call_target("@default") == "@default"
    assert not fits(forms.line(5), "\xe9")
