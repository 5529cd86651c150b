"""The messages about one device: what is known of it, and what the rules say to dom0's user.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated

import attr

from .codec import ITEMS_MAX
from .fields import ATTACHMENTS_MAX, AtMost, ClassName, DeviceId, Text, VmName
from .policy_messages import Verdict

#: Reasons why a device cannot be lent: its class, what its source says, and who has a relative.
UNFIT_MAX = 4


@attr.frozen
class DeviceInfo:
    """Tell everything that is known of one device."""

    device_class: ClassName
    backend: VmName
    device: DeviceId


@attr.frozen
class Relative:
    """A device that cannot be lent beside another one, as they are the same hardware or hold the
    same data: a disk's stick, its partitions. `vms` have it, as far as the caller may know."""

    device_class: ClassName
    device: DeviceId
    vms: Annotated[tuple[VmName, ...], AtMost(ATTACHMENTS_MAX)]


@attr.frozen
class Decided:
    """What policy says if dom0's user attaches the device to one of `vms`, which run.

    `rule`, `text`, `default` and `reason` are those of `ExplainResult`. `target` is the VM that the
    rule sends it to instead.
    """

    vms: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)]
    verdict: Verdict
    rule: Text | None
    text: Text | None
    default: bool
    reason: Text
    read_only: bool
    target: Text | None
