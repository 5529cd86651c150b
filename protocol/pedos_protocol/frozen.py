"""`attr.frozen` for a program that has two hundred such classes, and starts.

Instances compare, hash and show themselves as those of `attr.frozen` do, but by functions that are
here. attrs compiles three functions of its own for each class, which is a quarter of the processor
time that a start of dom0's service takes.
"""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attr

__all__ = ["frozen"]

if TYPE_CHECKING:
    from attr import frozen
else:

    def frozen(cls: type[Any]) -> type[Any]:
        """An immutable class whose instances are equal when all their attributes are.

        TypeError if one of them is not to be compared or shown.
        """
        made = attr.frozen(cls, eq=False, repr=False)
        fields = attr.fields(made)
        for each in fields:
            usual = (each.eq, each.eq_key, each.hash, each.repr) == (True, None, None, True)
            if not usual:
                raise TypeError(
                    f"{cls.__qualname__} has an attribute that needs attr.frozen itself"
                )
        names = [each.name for each in fields]
        named = made.__qualname__.rpartition(">.")[2]
        # All values of an instance: a tuple, or the only one.
        values = attrgetter(*names) if names else _nothing

        def equals(self: Any, other: object) -> bool:
            if other.__class__ is not made:
                return NotImplemented
            return values(self) == values(other)

        def hash_of(self: Any) -> int:
            return hash((made, values(self)))

        def shown(self: Any) -> str:
            attributes = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{named}({attributes})"

        for name, function in (("__eq__", equals), ("__hash__", hash_of), ("__repr__", shown)):
            # One that the class has defined itself stays.
            if name not in vars(cls):
                setattr(made, name, function)
        return made


def _nothing(_: object) -> Hashable:
    return ()
