"""Classes with our own `frozen` are as those with attrs' own."""

from __future__ import annotations

from typing import Any

import attr
import pytest
from pedos_protocol.frozen import frozen


def made_with(decorator: Any) -> list[type[Any]]:
    """Classes with none, one and several attributes, and one with what it has itself."""

    class Nothing:
        """Nothing."""

    class One:
        a: int

    class Several:
        a: int
        b: tuple[str, ...] = ()
        c: dict[str, int] | None = attr.field(default=None, kw_only=True)

    class Own:  # noqa: PLW1641 - that is its point
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

    return [decorator(cls) for cls in (Nothing, One, Several, Own)]


OURS, THEIRS = made_with(frozen), made_with(attr.frozen)
VALUES: list[tuple[int, dict[str, Any]]] = [
    (0, {}),
    (1, {"a": 1}),
    (1, {"a": 2}),
    (2, {"a": 1}),
    (2, {"a": 1, "b": ("x",)}),
    (2, {"a": 1, "c": {"y": 1}}),
]


def of(classes: list[type[Any]]) -> list[Any]:
    return [classes[which](**values) for which, values in VALUES]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_they_compare_hash_and_show_themselves_alike(number: int) -> None:
    ours, theirs = of(OURS), of(THEIRS)
    assert [ours[number] == each for each in of(OURS)] == [
        theirs[number] == each for each in of(THEIRS)
    ]
    assert [ours[number] != each for each in of(OURS)] == [
        theirs[number] != each for each in of(THEIRS)
    ]
    assert ours[number] != VALUES[number]
    assert repr(ours[number]) == repr(theirs[number])
    if VALUES[number][1].get("c") is None:
        assert hash(ours[number]) == hash(of(OURS)[number])
        assert len({*of(OURS)[:5]}) == 5
    else:
        for each in (ours, theirs):
            with pytest.raises(TypeError, match="unhashable"):
                hash(each[number])


def test_they_are_immutable_and_can_be_changed_into_others() -> None:
    several = OURS[2](a=1)
    with pytest.raises(attr.exceptions.FrozenInstanceError):
        several.a = 2
    assert attr.evolve(several, a=2) == OURS[2](a=2)
    assert not hasattr(several, "__dict__")
    assert OURS[2].__match_args__ == ("a", "b")


def test_what_a_class_defines_itself_stays() -> None:
    for own in (OURS[3], THEIRS[3]):
        assert repr(own(1)) == "own"
        assert own(1) == own(2)
        assert own.__hash__ is None


@pytest.mark.parametrize(
    "how", [{"eq": False}, {"repr": False}, {"eq": str.lower}, {"hash": False}]
)
def test_an_attribute_that_is_not_compared_or_shown_is_refused(how: dict[str, Any]) -> None:
    class Different:
        a: str = attr.field(**how)

    with pytest.raises(TypeError, match=r"Different has an attribute that needs attr\.frozen"):
        frozen(Different)
