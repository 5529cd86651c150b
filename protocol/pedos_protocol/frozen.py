"""`attr.frozen` for a program that has two hundred such classes, and starts.

Instances are made, compare, hash and show themselves as those of `attr.frozen`, and `attr.fields`,
`attr.evolve` and their kind take them. But attrs compiles and builds so much for each class that it
took a quarter of the processor time of a start. Here a class gets its `__init__` when the first
instance is made, and what attrs wants to know of it when attrs is asked: most classes of a program
that starts never do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import attr

__all__ = ["Field", "fields_of", "frozen", "is_frozen"]


class Field(NamedTuple):
    """An attribute of such a class. `default` is `attr.NOTHING` if it must be given."""

    name: str
    type: Any
    default: Any
    kw_only: bool
    metadata: Any


_FIELDS: dict[type[Any], tuple[Field, ...]] = {}


def is_frozen(thing: object) -> bool:
    """Whether it is a class that `frozen` has made."""
    return isinstance(thing, type) and thing in _FIELDS


def fields_of(cls: type[Any]) -> tuple[Field, ...]:
    """The attributes of a class that `frozen` has made, in their order. TypeError for another."""
    try:
        return _FIELDS[cls]
    except KeyError:
        raise TypeError(f"{cls!r} was not made by frozen") from None


if TYPE_CHECKING:
    from attr import frozen
else:

    def frozen(cls: type[Any]) -> type[Any]:
        """An immutable class whose instances are equal when all their attributes are.

        TypeError if an attribute has more to it than a default and metadata, ValueError if one
        that must be given follows one that need not be.
        """
        contents = {
            name: value
            for name, value in vars(cls).items()
            if name not in ("__dict__", "__weakref__")
        }
        own = tuple(
            _field(cls, name, annotation, contents.pop(name, attr.NOTHING))
            for name, annotation in cls.__annotations__.items()
            if not _is_the_classes(annotation)
        )
        bases = [each for base in cls.__mro__[1:] for each in _FIELDS.get(base, ())]
        fields = (*bases, *own)
        names = [each.name for each in fields]
        _check_order(cls, fields)
        named = cls.__qualname__.rpartition(">.")[2]
        # All values of an instance: a tuple, or the only one.
        values = attrgetter(*names) if names else _nothing

        def first_init(self: Any, *args: Any, **kwargs: Any) -> None:
            made.__init__ = init = _init_of(made, fields)
            init(self, *args, **kwargs)

        def equals(self: Any, other: object) -> bool:
            if other.__class__ is not made:
                return NotImplemented
            return values(self) == values(other)

        def hash_of(self: Any) -> int:
            return hash((made, values(self)))

        def shown(self: Any) -> str:
            attributes = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{named}({attributes})"

        given = {
            "__init__": first_init,
            "__eq__": equals,
            "__hash__": hash_of,
            "__repr__": shown,
            "__setattr__": _refuse,
            "__delattr__": _refuse,
            "__getstate__": _state,
            "__setstate__": _set_state,
            "__match_args__": tuple(each.name for each in fields if not each.kw_only),
            "__attrs_attrs__": _WhenAsked(cls),
            "__slots__": tuple(each.name for each in own) + (() if bases else ("__weakref__",)),
            "__qualname__": cls.__qualname__,
        }
        # What the class has defined itself stays.
        made = type(cls)(cls.__name__, cls.__bases__, {**given, **contents})
        _FIELDS[made] = fields
        return made


def _is_the_classes(annotation: Any) -> bool:
    """Whether it is a ClassVar: as text, where annotations are postponed."""
    if isinstance(annotation, str):
        return annotation.startswith("ClassVar")
    return getattr(annotation, "__origin__", annotation) is ClassVar


def _field(cls: type[Any], name: str, annotation: Any, default: Any) -> Field:
    kw_only, metadata = False, {}
    if isinstance(default, _Counting):
        it = default
        usual = (it.eq, it.eq_key, it.hash, it.repr, it.init) == (True, None, None, True, True)
        of_its_own = (it._validator, it.converter, it.alias, it.on_setattr)
        if not usual or any(of_its_own) or getattr(it._default, "takes_self", False):
            raise TypeError(f"{cls.__qualname__} has an attribute that needs attr.frozen itself")
        default, kw_only, metadata = it._default, bool(it.kw_only), it.metadata
    return Field(name, annotation, default, kw_only, metadata)


_Counting = type(attr.field())  # what a class's body has for an attribute until it is made


def _check_order(cls: type[Any], fields: tuple[Field, ...]) -> None:
    may_be_missing = False
    for each in fields:
        if each.kw_only:
            continue
        if may_be_missing and each.default is attr.NOTHING:
            raise ValueError(f"{cls.__qualname__}.{each.name} must be given and follows a default")
        may_be_missing = may_be_missing or each.default is not attr.NOTHING


def _init_of(cls: type[Any], fields: tuple[Field, ...]) -> Callable[..., None]:
    """The function that makes an instance: compiled, because a program makes thousands."""
    known: dict[str, Any] = {"_NOTHING": attr.NOTHING}
    parameters = ["self"]
    lines = []
    for each in sorted(fields, key=attrgetter("kw_only")):
        name, default, value = each.name, each.default, each.name
        if each.kw_only and "*" not in parameters:
            parameters.append("*")
        if default is attr.NOTHING:
            parameters.append(name)
        elif isinstance(default, attr.Factory):  # type: ignore[arg-type]
            parameters.append(f"{name}=_NOTHING")
            known[f"_make_{name}"] = default.factory
            value = f"_make_{name}() if {name} is _NOTHING else {name}"
        else:
            parameters.append(f"{name}=_default_{name}")
            known[f"_default_{name}"] = default
        known[f"_set_{name}"] = getattr(cls, name).__set__  # past the class's own refusal
        lines.append(f"    _set_{name}(self, {value})")
    source = f"def __init__({', '.join(parameters)}):\n" + ("\n".join(lines) or "    pass")
    # Of nothing but the names in the class's body.
    exec(compile(source, f"<the attributes of {cls.__qualname__}>", "exec"), known)  # noqa: S102
    init: Callable[..., None] = known["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


class _WhenAsked:
    """What attrs knows of a class, made when it looks for that."""

    def __init__(self, cls: type[Any]) -> None:
        self._cls = cls

    def __get__(self, _: object, owner: type[Any]) -> Any:
        found = attr.fields(attr.frozen(self._cls, eq=False, repr=False))
        owner.__attrs_attrs__ = found
        return found


def _refuse(self: object, name: str, value: object = None) -> None:
    raise attr.exceptions.FrozenInstanceError


def _state(self: Any) -> dict[str, Any]:
    return {each.name: getattr(self, each.name) for each in _FIELDS[type(self)]}


def _set_state(self: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        object.__setattr__(self, name, value)


def _nothing(_: object) -> Hashable:
    return ()
