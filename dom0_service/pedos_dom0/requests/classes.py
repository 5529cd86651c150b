"""The device classes: what clients are told of them, and which ones a request may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.device_classes import (
    CLASSES,
    CLASSES_MAX,
    DeviceClass,
    class_names,
)
from pedos_protocol.messages import ClassInfo, DeviceClassesListed, OptionInfo
from pedos_protocol.names import shown

from pedos_dom0.device_classes.registered import UnknownClass, class_of

if TYPE_CHECKING:
    from pedos_protocol.device_classes import Option

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey


def classes_told(state: State, caller: Caller) -> DeviceClassesListed:
    """All classes, and what is lacking to attach their devices here. Root also sees those of a
    newer dom0 of which something is left, to be able to name them."""
    told = list(CLASSES)
    if caller.kind.names_left:
        told += [_left(key) for key in state.unknown_classes().values()]
    return DeviceClassesListed(
        tuple(
            ClassInfo(
                name=each.name,
                one=each.one,
                many=each.many,
                source=each.source,
                example=each.example,
                shared=each.shared,
                live=each.live,
                written=each.written,
                options=tuple(map(_option_told, each.options)),
                heard=each.heard,
                lacking=state.carrier(each.name).lack,
            )
            for each in told[:CLASSES_MAX]
        )
    )


def _left(key: DeviceKey) -> DeviceClass:
    left = UnknownClass(key.device_class, source=key.backend, example=key.device)
    return left.description


def _option_told(option: Option) -> OptionInfo:
    return OptionInfo(option.name, option.values, option.example, option.default)


def why_unknown(params: object, left_in: State | None) -> str | None:
    """The error of a request that names a class which this dom0 does not know; None with `left_in`
    if a newer dom0 has left something of the class there."""
    named = getattr(params, "device_class", None)
    if named is None or class_of(named).is_known:
        return None
    if left_in is not None and named in left_in.unknown_classes():
        return None
    known = ", ".join(class_names())
    return f"device_class: {shown(named)} is not a device class: one of {known} is meant"
