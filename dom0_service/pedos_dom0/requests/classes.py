"""Which device classes there are: what is told of them, and what a request may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.device_classes import CLASSES, class_named, class_names
from pedos_protocol.messages import ClassInfo, DeviceClassesListed, OptionInfo
from pedos_protocol.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_protocol.device_classes import Option

    from pedos_dom0.drivers.carrier import Carrier


def classes_told(carrier: Callable[[str], Carrier]) -> DeviceClassesListed:
    """All classes, and what is lacking to attach their devices here."""
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
                lacking=carrier(each.name).lack,
            )
            for each in CLASSES
        )
    )


def _option_told(option: Option) -> OptionInfo:
    return OptionInfo(option.name, option.values, option.example, option.default)


def why_unknown(params: object) -> str | None:
    """What is wrong with a request that names a class which is none of this dom0's."""
    named = getattr(params, "device_class", None)
    if named is None or class_named(named) is not None:
        return None
    known = ", ".join(class_names())
    return f"device_class: {shown(named)} is not a device class: one of {known} is meant"
