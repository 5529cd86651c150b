"""The messages about device classes: which there are, and what an attach of each may say.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated

import attr

from .device_classes import CLASSES_MAX, OPTIONS_MAX, VALUES_MAX
from .fields import OPTIONAL, AtMost, ClassName, DeviceId, Text, VmName
from .frozen import frozen


@frozen
class DeviceClasses:
    """List the device classes."""


@frozen
class OptionInfo:
    """An option of an attach; see `device_classes.Option`."""

    name: Text
    values: Annotated[tuple[Text, ...], AtMost(VALUES_MAX)]
    example: Text
    default: Text | None


@frozen
class ClassInfo:
    """A class as this dom0 has it; see `device_classes.DeviceClass`. `lacking` is a sentence about
    why none of its devices can be attached in this system; None if they can."""

    name: ClassName
    one: Text
    many: Text
    source: VmName
    example: DeviceId
    shared: bool
    live: bool
    written: bool
    options: Annotated[tuple[OptionInfo, ...], AtMost(OPTIONS_MAX)]
    lacking: Text | None = attr.field(default=None, kw_only=True, metadata=OPTIONAL)
    heard: bool = attr.field(default=False, kw_only=True, metadata=OPTIONAL)


@frozen
class DeviceClassesListed:
    """The classes that can be listed, in the order for people."""

    classes: Annotated[tuple[ClassInfo, ...], AtMost(CLASSES_MAX)]
