"""Classes with our own `frozen` are as those with attrs' own."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

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

    class More(decorator(Several)):  # type: ignore[misc]
        shared: ClassVar[int] = 1
        e: list[int] = attr.field(factory=list)
        f: str = attr.field(kw_only=True, metadata={"since": 2})

    class Own:  # noqa: PLW1641 - that is its point
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

    return [decorator(cls) for cls in (Nothing, One, Several, Own, More)]


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


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {"f": "x"}),
    ((1, ("y",), [2]), {"f": "x", "c": {}}),
    ((1,), {"e": [3], "f": "x", "b": ()}),
    ((), {"f": "x"}),
    ((1,), {}),
    ((1, (), [], {}), {"f": "x"}),
    ((1,), {"f": "x", "g": 0}),
    ((1,), {"a": 1, "f": "x"}),
]


@pytest.mark.parametrize(("positional", "named"), CALLS)
def test_they_are_made_alike(positional: tuple[Any, ...], named: dict[str, Any]) -> None:
    def outcome(cls: type[Any]) -> object:
        try:
            made = cls(*positional, **named)
        except TypeError as error:
            return str(error).rpartition(".")[2]
        return [getattr(made, name) for name in "abcef"], repr(made)

    assert outcome(OURS[4]) == outcome(THEIRS[4])


def test_attrs_knows_of_them_what_it_knows_of_its_own() -> None:
    for ours, theirs in zip(OURS, THEIRS, strict=True):
        assert [
            (each.name, each.type, each.default, each.kw_only, each.metadata, each.inherited)
            for each in attr.fields(ours)
        ] == [
            (each.name, each.type, each.default, each.kw_only, each.metadata, each.inherited)
            for each in attr.fields(theirs)
        ]
        assert (ours.__doc__, ours.__match_args__) == (theirs.__doc__, theirs.__match_args__)
        assert (ours.__name__, ours.__qualname__) == (theirs.__name__, theirs.__qualname__)
    assert OURS[4].shared == 1
    assert attr.asdict(OURS[4](1, f="x")) == attr.asdict(THEIRS[4](1, f="x"))


@frozen
class Kept:
    """One that pickle finds by its name."""

    a: int
    b: tuple[str, ...] = ()


def test_they_are_copied() -> None:
    kept = Kept(1, ("x",))
    for again in (copy.copy(kept), copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert again == kept
        assert again is not kept


def test_one_that_must_be_given_follows_none_that_need_not() -> None:
    class Wrong:
        a: int = 1
        b: int

    with pytest.raises(ValueError, match=r"Wrong\.b must be given and follows a default"):
        frozen(Wrong)


def test_what_a_class_defines_itself_stays() -> None:
    for own in (OURS[3], THEIRS[3]):
        assert repr(own(1)) == "own"
        assert own(1) == own(2)
        assert own.__hash__ is None


@pytest.mark.parametrize(
    "how",
    [
        {"eq": False},
        {"repr": False},
        {"eq": str.lower},
        {"hash": False},
        {"init": False},
        {"converter": str},
        {"validator": attr.validators.instance_of(str)},
        {"alias": "b"},
        {"on_setattr": attr.setters.NO_OP},
        {"default": attr.Factory(list, takes_self=True)},
    ],
)
def test_an_attribute_that_attrs_does_more_with_is_refused(how: dict[str, Any]) -> None:
    class Different:
        a: str = attr.field(**how)

    with pytest.raises(TypeError, match=r"Different has an attribute that needs attr\.frozen"):
        frozen(Different)
