"""The messages about muting a VM: what it hears of others' devices is silence until it is unmuted.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

from .assignment_messages import ErrorInfo
from .fields import ATTACHMENTS_MAX, AtMost, ClassName, DeviceId, Text, VmName
from .frozen import frozen

#: VMs that are muted for one class; the list of them fits a frame beside a page of devices.
MUTED_MAX = 256


@frozen
class DeviceMute:
    """Mute `vm` for all devices of a class that it has and will get, or unmute it."""

    device_class: ClassName
    vm: VmName
    muted: bool


@frozen
class MuteItem:
    """One device that the VM has. `error`: why its source did not confirm the change."""

    backend: VmName
    device: DeviceId
    error: ErrorInfo | None = None


@frozen
class MuteResult:
    """`outcome` is about the VM and is noted for good; `results` are about what it has now."""

    outcome: Literal["muted", "unmuted", "already"]
    results: Annotated[tuple[MuteItem, ...], AtMost(ATTACHMENTS_MAX)]
    request: Text
