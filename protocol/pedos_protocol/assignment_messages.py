"""The messages about assignments: the devices that VMs are to have, by port or by identity.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

import attr

from .codec import ITEMS_MAX
from .errors import CallError
from .fields import (
    AtMost,
    ClassName,
    DeviceId,
    ErrorCode,
    Identity,
    Natural,
    Options,
    Text,
    VmName,
    WireMap,
    since,
)
from .frozen import frozen
from .policy_messages import Mode, PolicyStatus, Verdict

MATCHES_MAX = 8  # devices of one assignment that are named; more share a port's hub or an identity
CONFLICTS_MAX = 8  # other assignments that an answer names; the rest is counted

#: What an assignment is to: whatever is at a port of a VM; the device with an identity, at any port
#: of that VM; that device at that port.
Match = Literal["port", "device", "both"]


@frozen
class ErrorInfo:
    """An error answer within a result."""

    code: ErrorCode
    message: Text
    data: WireMap = attr.field(factory=dict)

    @classmethod
    def of(cls, error: CallError) -> "ErrorInfo":
        """What `error` says."""
        return cls(error.code, error.message, error.data)


@frozen
class AssignedTo:
    """A VM to which the device is assigned, and the mode of the assignment that applies."""

    vm: VmName
    options: Options = attr.field(factory=dict)
    mode: Mode = attr.field(default="required", kw_only=True, metadata=since(2))


@frozen
class DeviceAssign:
    """Assign a device to `vm`, or say what would happen (`dry_run`) and change nothing.

    With `device` alone, the identity is that of the device at this port now; `identity` is then the
    one that is expected there, and another one is refused. A device that is not there can be
    assigned by its port, or with its `identity`. `device` may be left out if `match` is "device".
    """

    device_class: ClassName
    vm: VmName
    backend: VmName
    device: DeviceId | None
    identity: Identity | None
    match: Match
    mode: Mode
    options: Options = attr.field(factory=dict)
    dry_run: bool = False


@frozen
class Conflict:
    """Another assignment of one of the same devices; the one that is `more` specific gets it, and
    of two that are `equal` none does. `less` is one that this assignment takes devices from."""

    vm: VmName
    device: DeviceId | None
    identity: Identity
    mode: Mode
    specific: Literal["more", "equal", "less"]


@frozen
class AssignedNow:
    """What would happen if the VM were to get the device now.

    `matches` are the devices that are there and meant; `absent` says why there is none, and
    `ambiguous` why none of several is taken. What follows is about the first of them: policy's
    `verdict` and its `rule` (None, None: there is none), the VM that has it or what it shares data
    with (`held_by`, `held` is that device), what else keeps it from being attached (`unfit`). The
    rest is about the assignment: `name_taken` says who has the name that it asks for, `conflicts`
    are other assignments, `runs` is whether the VM runs.
    """

    matches: Annotated[tuple[DeviceId, ...], AtMost(MATCHES_MAX)] = ()
    matches_left_out: Natural = 0
    absent: Text | None = None
    ambiguous: Text | None = None
    verdict: Verdict | None = None
    rule: Text | None = None
    held_by: VmName | None = None
    held: DeviceId | None = None
    unfit: Text | None = None
    name_taken: Text | None = None
    conflicts: Annotated[tuple[Conflict, ...], AtMost(CONFLICTS_MAX)] = ()
    conflicts_left_out: Natural = 0
    runs: bool = False


@frozen
class AssignResult:
    """`outcome` is what happened, or would have: "changed" says that the VM had an assignment to
    this port or identity, and has this one instead.

    `vm`, `options`, `device` and `identity` are those of the assignment; `identity` is "" if it is
    to any device at the port. `now` is None for a VM that asked, which must not know.
    """

    outcome: Literal["assigned", "changed", "already"]
    options: Options
    request: Text
    vm: VmName | None
    device: DeviceId | None
    identity: Identity
    now: AssignedNow | None = None
    policy_ok: bool | None = None


@frozen
class DeviceUnassign:
    """Take an assignment of `vm` away: that to a port, or to an identity (without `device`), or all
    of the class if neither is named. What the VM has stays attached."""

    device_class: ClassName
    vm: VmName
    backend: VmName | None = None
    device: DeviceId | None = None
    identity: Identity | None = None


@frozen
class UnassignItem:
    """The result for one assignment."""

    backend: VmName
    device: DeviceId | None
    identity: Identity
    mode: Mode
    unassigned: bool
    error: ErrorInfo | None = None


@frozen
class UnassignResult:
    """One item for each assignment; `policy_ok` as in `AttachResult`."""

    results: Annotated[tuple[UnassignItem, ...], AtMost(ITEMS_MAX)]
    request: Text
    policy_ok: bool | None = None


@frozen
class AssignmentName:
    """Which assignment: a VM has at most one to a port, and one to an identity at any port."""

    vm: VmName
    backend: VmName
    device: DeviceId | None
    identity: Identity


@frozen
class DeviceAssignments:
    """List assignments of a class: to and of these `vms` (None: all), but not to or of `exclude`.

    An answer is one frame; `after` is the last one of the previous answer, for the next.
    """

    device_class: ClassName
    vms: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] | None = None
    exclude: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] = ()
    after: AssignmentName | None = None


@frozen
class Holder:
    """A device that an assignment matches, and a VM that has it now."""

    device: DeviceId
    vm: VmName


@frozen
class Assigned:
    """An assignment. `orphaned`: its VM was removed, and a VM of that name does not get the device.

    `matches` are the devices that it is to now; `holders` are the VMs that have them, as far as
    the caller may know. `conflict` says why the VM does not get a device that is there.
    """

    vm: VmName
    backend: VmName
    device: DeviceId | None
    identity: Identity
    mode: Mode
    options: Options
    orphaned: bool = False
    matches: Annotated[tuple[DeviceId, ...], AtMost(MATCHES_MAX)] = ()
    matches_left_out: Natural = 0
    holders: Annotated[tuple[Holder, ...], AtMost(MATCHES_MAX)] = ()
    conflict: Text | None = None


@frozen
class AssignmentsListed:
    """The assignments that the caller may know, in order of VM, source and port.

    `more` says that there are further ones, to be had with `after`; `policy` is None for a VM.
    """

    assignments: Annotated[tuple[Assigned, ...], AtMost(ITEMS_MAX)]
    more: bool = False
    policy: PolicyStatus | None = None
