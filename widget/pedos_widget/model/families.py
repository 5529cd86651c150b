"""Devices of one class in the order in which they are shown: each partition behind its disk.

What a device names as its parent comes from its VM, and may be missing, or a circle. Every device
is in the order exactly once, whatever they say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pedos_protocol.names import natural_key

from .picture import Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pedos_protocol.messages import Listed

    SortKey = tuple[tuple[str, str], tuple[str, str]]

INDENT_MAX = 2
"""A partition's partition is as deep as anything is; more would leave no room for the text."""

CHILDREN_MAX = 8
"""Children of one device that are shown: as many partitions as a person looks through. A disk may
have hundreds, and would hide all other devices."""


class Member(NamedTuple):
    """A device in its place; `folded` of its children are not shown."""

    key: Key
    indent: int
    folded: int


def parent_of(device: Listed) -> Key | None:
    """Where the device says that it is a part of another one."""
    if device.parent is None:
        return None
    return Key(device.parent_class or device.device_class, device.backend, device.parent)


def in_order(
    devices: Mapping[Key, Listed],
    device_class: str,
    is_kept: Callable[[Key], bool],
    sort_keys: Mapping[Key, SortKey] | None = None,
) -> list[Member]:
    """The devices of a class, less the folded ones. `is_kept` says which are never folded;
    `sort_keys` are those of all devices, if they are known."""
    order = sort_key if sort_keys is None else sort_keys.__getitem__
    own = sorted((key for key in devices if key.device_class == device_class), key=order)
    children: dict[Key, list[Key]] = {}
    roots = []
    for key in own:
        parent = parent_of(devices[key])
        if parent is None or parent not in devices or parent.device_class != device_class:
            roots.append(key)
        else:
            children.setdefault(parent, []).append(key)
    seen: set[Key] = set()
    members: list[Member] = []
    # Those in a circle are below no root: each that is left is one.
    for root in (*roots, *own):
        if root not in seen and root in children:
            _walk(root, children, is_kept, seen, members)
        elif root not in seen:  # as most are: there may be thousands
            members.append(Member(root, 0, 0))
            seen.add(root)
    return members


def _walk(
    root: Key,
    children: Mapping[Key, Iterable[Key]],
    is_kept: Callable[[Key], bool],
    seen: set[Key],
    members: list[Member],
) -> None:
    todo = [(root, 0)]
    seen.add(root)
    while todo:
        key, indent = todo.pop()
        below = [child for child in children.get(key, ()) if child not in seen]
        seen.update(below)
        shown = _unfolded(below, is_kept)
        hidden = [child for child in below if child not in shown]
        for child in hidden:  # which grows by what is below
            further = [
                each for each in children.get(child, ()) if each not in seen and not is_kept(each)
            ]
            hidden += further
            seen.update(further)
        members.append(Member(key, indent, len(hidden)))
        todo += [(child, min(indent + 1, INDENT_MAX)) for child in reversed(shown)]


def _unfolded(below: list[Key], is_kept: Callable[[Key], bool]) -> list[Key]:
    kept = {child for child in below if is_kept(child)}
    room = CHILDREN_MAX - len(kept)
    shown = []
    for child in below:
        if child in kept:
            shown.append(child)
        elif room > 0:
            shown.append(child)
            room -= 1
    return shown


def sort_key(key: Key) -> SortKey:
    """By source and id, numbers in them as numbers. It takes longer than sorting by it does."""
    return natural_key(key.backend), natural_key(key.device)
