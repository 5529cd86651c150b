"""The device classes: those of the service, or else the built-in ones.

A command that names a built-in class does not ask: it makes its help and its parser without a
service. If the service is missing, or too old to know the question, the built-in classes apply.
"""

from __future__ import annotations

from pedos_protocol.device_classes import (
    CLASSES,
    CLASSES_MAX,
    DeviceClass,
    Option,
    is_class_name,
)
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.names import is_device_id, is_vm_name

from pedos_cli.answers import take, take_maps
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

OF_HEARD = ("mute", "unmute")
"""The actions that only classes have whose devices can be listened to."""

TIMEOUT_S = 0.5
"""Seconds that the service may take: it answers from memory, and a Tab waits for it."""


def classes_there_are() -> tuple[DeviceClass, ...]:
    """Return the classes that the service has."""
    from pedos_cli import client  # noqa: PLC0415  (help does without)

    try:
        service = client.connect()
        try:
            answer = service.call("device.classes", {}, TIMEOUT_S)
        finally:
            service.close()
        told = take_maps(answer, "classes")[:CLASSES_MAX]
        return tuple(_class(each) for each in told) or tuple(CLASSES)
    except (CallError, ProtocolError, OSError, client.Unreachable):
        return tuple(CLASSES)


def _class(told: Mapping[str, object]) -> DeviceClass:
    """Return a class as the service describes it; ProtocolError if the description is malformed."""
    name, source, example = (take(told, key, str) for key in ("name", "source", "example"))
    if not (is_class_name(name) and is_vm_name(source) and is_device_id(example)):
        raise ProtocolError("the service tells of a device class that has no proper name")
    return DeviceClass(
        name,
        one=show(take(told, "one", str)),
        many=show(take(told, "many", str)),
        source=source,
        example=example,
        shared=take(told, "shared", bool),
        live=take(told, "live", bool),
        written=take(told, "written", bool),
        heard=told.get("heard") is True,  # an older service does not say it
        options=tuple(_option(each) for each in take_maps(told, "options")),
    )


def _option(told: Mapping[str, object]) -> Option:
    values = take(told, "values", list)
    default = told.get("default")
    return Option(
        show(take(told, "name", str)),
        tuple(show(value) for value in values if isinstance(value, str)),
        example=show(take(told, "example", str)),
        default=default if isinstance(default, str) else None,
    )
