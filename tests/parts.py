"""What an object of this project consists of."""

from __future__ import annotations

import types
from collections.abc import Iterator


def parts(whole: object, *besides: type) -> Iterator[object]:
    """`whole` and all objects of this project that it refers to by its attributes, also in tuples,
    lists and bound methods; not those of a type in `besides`, which it shares with others."""
    todo, seen = [whole], {id(whole)}
    while todo:
        one = todo.pop()
        inner: list[object] = []
        if isinstance(one, types.MethodType):
            inner = [one.__self__]
        elif isinstance(one, (tuple, list)):
            inner = list(one)
        elif type(one).__module__.startswith("pedos_") and not isinstance(one, (type, *besides)):
            yield one
            inner = list(_attributes(one))
        fresh = [each for each in inner if id(each) not in seen]
        seen.update(map(id, fresh))
        todo += fresh


def _attributes(one: object) -> Iterator[object]:
    yield from getattr(one, "__dict__", {}).values()
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(one, name):
                yield getattr(one, name)
