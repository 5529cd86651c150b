"""What has happened: for those who do not look at the menu."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_cli.device_list import size_text
from pedos_protocol.names import natural_key

from .families import parent_of
from .picture import Change
from .view import DeviceRef, Happened
from .work import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pedos_protocol.messages import Listed

    from .picture import Key, Picture
    from .work import Verb

    IsOwn = Callable[[Key, str, Verb], bool]

PARENTS_MAX = 4
"""Devices above one: a stick, its disk and a partition are three. A VM may name a chain of
thousands, and each is looked at for each change."""


def news(changes: Sequence[Change], picture: Picture, is_own: IsOwn) -> Iterator[Happened]:
    """What a person may want to be told of these changes, which have led to `picture`."""
    gone = {each.key: each.before for each in changes if each.before is not None}
    devices = {**gone, **picture.devices}
    for change in changes:
        for each in _of_one_device(change):
            yield from _of(each, devices, is_own)


def _of_one_device(change: Change) -> list[Change]:
    """Another device that has got the id has come, and the first one has gone."""
    key, before, now = change
    if before is not None and now is not None and before.identity != now.identity:
        return [Change(key, before, None), Change(key, None, now)]
    return [change]


def _of(change: Change, devices: Mapping[Key, Listed], is_own: IsOwn) -> Iterator[Happened]:
    device = change.now or change.before
    if device is None:
        return
    ref, text = DeviceRef(*change.key, device.identity), in_words(change.key, device)
    family = _topmost(change.key, device, devices)
    is_here, was_here = _is_here(change.now), _is_here(change.before)
    if is_here and not was_here:
        yield Happened("appeared", ref, text, None, False, family)
    before, now = _users(change.before), _users(change.now)
    for vm in sorted(now.keys() - before.keys(), key=natural_key):
        is_its = is_own(change.key, vm, "attach")
        yield Happened("attached", ref, text, vm, is_its, family)
    for vm in sorted(before.keys() - now.keys(), key=natural_key):
        is_its = is_own(change.key, vm, "detach")
        yield Happened("detached", ref, text, vm, is_its, family)
    for vm in sorted(now, key=natural_key):
        if now[vm] and not before.get(vm):
            yield Happened("listening", ref, text, vm, False, family)
    if was_here and not is_here:
        yield Happened("gone", ref, text, None, False, family)


def _users(device: Listed | None) -> dict[str, bool]:
    if device is None:
        return {}
    return {each.vm: bool(each.listening) for each in device.attachments}


def _is_here(device: Listed | None) -> bool:
    return device is not None and device.present


def _topmost(key: Key, device: Listed, devices: Mapping[Key, Listed]) -> DeviceRef:
    """The device that it is a part of, or a part of a part; at most PARENTS_MAX above it, also in a
    circle."""
    for _step in range(PARENTS_MAX):
        parent = parent_of(device)
        if parent is None or parent not in devices:
            break
        key, device = parent, devices[parent]
    return DeviceRef(*key, device.identity)


def in_words(key: Key, device: Listed) -> str:
    """Its name, its size, and in curved quotation marks, which no device's text has, what it calls
    itself."""
    words = [name_of(key)]
    words += [f"“{device.description}”"] if device.description else []
    words += [size_text(device.size)] if device.size is not None else []
    return " ".join(words)
