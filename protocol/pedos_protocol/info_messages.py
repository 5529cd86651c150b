"""The messages about one device: what is known of it, what the rules say to dom0's user, and which
VMs it could be attached to.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated

from .codec import ITEMS_MAX
from .fields import (
    ATTACHMENTS_MAX,
    AtMost,
    ClassName,
    DeviceId,
    Identity,
    Natural,
    Text,
    VmName,
)
from .frozen import frozen
from .machine_messages import VmState
from .policy_messages import Verdict

#: Reasons why a device cannot be lent: its class, what its source says, who has it from elsewhere,
#: and who has a relative.
UNFIT_MAX = 4


@frozen
class DeviceInfo:
    """Tell everything that is known of one device."""

    device_class: ClassName
    backend: VmName
    device: DeviceId


@frozen
class Relative:
    """A device that cannot be lent beside another one, as they are the same hardware or hold the
    same data: a disk's stick, its partitions. `vms` have it, as far as the caller may know."""

    device_class: ClassName
    device: DeviceId
    vms: Annotated[tuple[VmName, ...], AtMost(ATTACHMENTS_MAX)]


@frozen
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


@frozen
class DeviceTargets:
    """Tell dom0's user for each VM what an attach of the device to it would come to now."""

    device_class: ClassName
    backend: VmName
    device: DeviceId


@frozen
class Target:
    """What comes of it if dom0's user attaches the device to `vm` now.

    `verdict` is "allow" if nothing stands against it that can be known before; "ask" if dom0's user
    is asked first; "deny" if a rule denies it or if anything else stands against it: `reason` says
    what. `rule` is the one that decided; None if none did, or if rules do not matter as the device
    cannot be lent at all. `read_only`: it would be attached so. `target` is the VM that the rule
    sends it to instead.
    """

    vm: VmName
    state: VmState
    verdict: Verdict
    reason: Text
    rule: Text | None
    read_only: bool
    target: Text | None


@frozen
class TargetsTold:
    """All VMs but dom0 and the one that has the device, in natural order.

    `identity` is the device's as it was looked at, for an attach to that device alone. `unfit` says
    why it cannot be lent to any of them now, as in `DeviceTold`. `left_out` counts the VMs that do
    not fit into the answer: those that are halted come last.
    """

    identity: Identity
    unfit: Annotated[tuple[Text, ...], AtMost(UNFIT_MAX)]
    targets: Annotated[tuple[Target, ...], AtMost(ITEMS_MAX)]
    left_out: Natural
