"""The messages about what there is: lists of devices and what is known of one, and their changes.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated

import attr

from .agent_messages import Device, Missing
from .assignment_messages import AssignedTo
from .codec import ITEMS_MAX
from .fields import (
    ATTACHMENTS_MAX,
    AtMost,
    ClassName,
    DeviceId,
    DeviceName,
    Identity,
    Natural,
    Options,
    Text,
    VmName,
    since,
)
from .frozen import frozen
from .info_messages import UNFIT_MAX, Decided, Relative
from .mute_messages import MUTED_MAX
from .policy_messages import PolicyStatus
from .vm_messages import VmInfo

# Listing


MISSING_MAX = 32  # VMs that a listing names as having more devices; the rest is counted


@frozen
class DeviceList:
    """List devices of a class: of and in these `vms` (None: all), but not of or in `exclude`.

    An answer is one frame and holds some hundred devices; `after` is the last one of the previous
    answer, for the next.
    """

    device_class: ClassName
    vms: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] | None = None
    exclude: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] = ()
    after: DeviceName | None = None


@frozen
class AttachedTo:
    """The VM that a device is attached to now.

    `left_over`: why it is not free although the attachment should have ended; for dom0's user
    alone. `listening`: whether somebody in the VM records now; None if that is not known, or the
    device is nothing to listen to. `muted`: the VM gets silence. `unconfirmed`: why that may not be
    so yet; for dom0's user alone.
    """

    vm: VmName
    options: Options = attr.field(factory=dict)
    left_over: Text | None = attr.field(default=None, kw_only=True, metadata=since(2))
    listening: bool | None = attr.field(default=None, kw_only=True, metadata=since(2))
    muted: bool = attr.field(default=False, kw_only=True, metadata=since(2))
    unconfirmed: Text | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class Listed(Device):
    """A device as dom0 lists it. `present` is False if it is only assigned, and missing.

    `orphans` are the VMs among those of `assignments` that were removed: a VM that has such a name
    by now does not start with the device. `assignments_left_out` counts the assignments that do not
    fit into an answer. `conflict` says why none of them gets it by itself, for dom0's user alone.
    """

    backend: VmName
    attachments: Annotated[tuple[AttachedTo, ...], AtMost(ATTACHMENTS_MAX)]
    assignments: Annotated[tuple[AssignedTo, ...], AtMost(ITEMS_MAX)]
    present: bool
    orphans: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )
    assignments_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))
    conflict: Text | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class MissingIn(Missing):
    """Devices that a VM, `backend`, has and does not report, so that they cannot be listed."""

    backend: VmName


@frozen
class DeviceListed:
    """The devices that the caller may see, by VM and in natural order; `policy` is None for a VM.

    `more` says that there are further ones, to be had with `after`. `missing`, on the last of these
    answers, says which VMs have devices that are not listed, or may have, because they run without
    an agent; and why: those that fit into it, of `missing_vms` altogether. `muted`, also there and
    for dom0's user alone, are the VMs that are muted for the class, whether they have a device of
    it or not.
    """

    devices: Annotated[tuple[Listed, ...], AtMost(ITEMS_MAX)]
    more: bool = False
    policy: PolicyStatus | None = None
    missing: Annotated[tuple[MissingIn, ...], AtMost(MISSING_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )
    missing_vms: Natural = attr.field(default=0, kw_only=True, metadata=since(2))
    muted: Annotated[tuple[VmName, ...], AtMost(MUTED_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )


@frozen
class DeviceTold:
    """Everything about `device` that the caller may know.

    `argument` is what a rule sees in the column ARGUMENT. `lasting` is the part of the identity by
    which an assignment recognises the device, "" if there is none. `unfit` says why it cannot be
    lent now. `decided` is for dom0's user, and has every VM that runs once, less `vms_left_out`
    that do not fit into the answer.
    """

    device: Listed
    argument: Text
    lasting: Identity
    unfit: Annotated[tuple[Text, ...], AtMost(UNFIT_MAX)] = ()
    relatives: Annotated[tuple[Relative, ...], AtMost(ITEMS_MAX)] = ()
    relatives_left_out: Natural = 0
    decided: Annotated[tuple[Decided, ...], AtMost(ITEMS_MAX)] = ()
    vms_left_out: Natural = 0


# Watching


@frozen
class WatchNext:
    """Wait for changes of what the caller may list.

    `numbering`, `number` and `begun` are those of the last answer; without `numbering`, the answer
    is everything that there is. Of devices, it has those of `device_class`, or of all classes.
    """

    device_class: ClassName | None = None
    numbering: Text | None = None
    number: Natural = 0
    begun: Natural = 0


@frozen
class DeviceChanged:
    """A device as it is `now`; None if it cannot be listed any more."""

    number: Natural
    device_class: ClassName
    backend: VmName
    device: DeviceId
    now: Listed | None


@frozen
class VmChanged:
    """A VM as it is `now`; None if it does not exist any more."""

    number: Natural
    vm: VmName
    now: VmInfo | None


@frozen
class Watched:
    """The last change of each device and VM that changed; together they lead up to `number`.

    Not `complete`: there are further ones already. `gap` says why the answer begins with everything
    that there is, although the request did not: what was known before is void. A number that is
    missing was of a change that a later one made obsolete, or of another class. `numbering` names
    the count: of one run of the service, for one VM or for dom0's user. `begun` is for the next
    request: the number at which an answer with everything was begun that is not complete yet.
    """

    numbering: Text
    number: Natural
    begun: Natural
    complete: bool
    devices: Annotated[tuple[DeviceChanged, ...], AtMost(ITEMS_MAX)]
    vms: Annotated[tuple[VmChanged, ...], AtMost(ITEMS_MAX)]
    gap: Text | None
