"""The messages about the sleep of the machine: what does not survive it is detached before it and
attached again after it.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated

from .assignment_messages import ErrorInfo
from .codec import ITEMS_MAX
from .fields import AtMost, ClassName, DeviceId, Natural, Text, VmName
from .frozen import frozen


@frozen
class DevicesSuspend:
    """Detach what does not survive the machine's sleep, and remember it for `devices.resume`."""


@frozen
class DevicesResume:
    """Attach again what `devices.suspend` has detached."""


@frozen
class SleepItem:
    """One device of `vm`: it is detached for the sleep, or attached again, or `error` says why not.

    `again`: it is remembered, so that a further `devices.resume` tries again.
    """

    device_class: ClassName
    backend: VmName
    device: DeviceId
    vm: VmName
    error: ErrorInfo | None = None
    again: bool = False


@frozen
class SleepResult:
    """One item for each device; `left_out` counts those that do not fit into the answer."""

    results: Annotated[tuple[SleepItem, ...], AtMost(ITEMS_MAX)]
    request: Text
    left_out: Natural = 0
