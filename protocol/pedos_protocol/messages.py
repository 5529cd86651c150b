"""All messages: one class for each, and one table that says which method carries which.

This module has those between a client and dom0 about devices; `assignment_messages` those about
assignments, `class_messages` those about device classes, `sleep_messages` those about the machine's
sleep, `vm_messages` those about VMs, `policy_messages` those about policy, `agent_messages` dom0's
with an agent, and `machine_messages` those of local mode's machine.

Classes are immutable and compare by value. Making one checks nothing: a program may be trusted
about its own state, and the reader checks anyway. Everything from a connection goes through
`parse_params` or `parse_result`, and through nothing else; their results are typed, bounded, and
contain only harmless text.

On the wire a message is a map with exactly the attributes' names as keys. An attribute's type
determines how it is read: `fields` has a parse function for each.
"""

# Annotations are read when this module is imported, so they are not postponed here.

from typing import Annotated, Literal

import attr

from . import agent_messages
from .agent_messages import (
    AgentReport,
    AttachmentEnded,
    Device,
    DeviceRef,
    ExportStart,
    ExportStarted,
    ExportState,
    ExportStop,
    ImportStart,
    ImportStarted,
    ImportState,
    ImportStop,
    Missing,
    ReportPrefer,
    ReportPreferred,
)
from .assignment_messages import (
    Assigned,
    AssignedNow,
    AssignedTo,
    AssignmentName,
    AssignmentsListed,
    AssignResult,
    Conflict,
    DeviceAssign,
    DeviceAssignments,
    DeviceUnassign,
    ErrorInfo,
    Holder,
    Match,
    Mode,
    UnassignItem,
    UnassignResult,
)
from .class_messages import ClassInfo, DeviceClasses, DeviceClassesListed, OptionInfo
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
    Seconds,
    Text,
    VmName,
    since,
)
from .info_messages import UNFIT_MAX, Decided, DeviceInfo, Relative
from .machine_messages import (
    DomainChanged,
    DomainInfo,
    DomainList,
    DomainListed,
    DomainShutdown,
    DomainStart,
    DomainStarted,
    VmState,
)
from .policy_messages import (
    DeviceExplain,
    ExplainResult,
    PolicyErrorInfo,
    PolicyExplain,
    PolicyExplained,
    PolicyMine,
    PolicyStatus,
    PolicySystem,
    PolicyVerdict,
    PromptAnswer,
    PromptAsk,
    PromptCall,
    PromptCancel,
    PrompterRegister,
    SystemVm,
    SystemVms,
    TraceStep,
    Verb,
    Verdict,
)
from .schema import Empty, Schema, Spec, to_wire
from .sleep_messages import DevicesResume, DevicesSuspend, SleepItem, SleepResult
from .vm_messages import (
    OperationStep,
    Step,
    VmInfo,
    VmList,
    VmListed,
    VmShutdown,
    VmStart,
    VmStarted,
    VmsUsed,
    VmUsed,
)

# This module exports all messages, whichever module defines them.
__all__ = [
    "SCHEMA",
    "AgentReport",
    "AssignResult",
    "Assigned",
    "AssignedNow",
    "AssignedTo",
    "AssignmentName",
    "AssignmentsListed",
    "AttachResult",
    "AttachedTo",
    "AttachmentEnded",
    "ClassInfo",
    "Conflict",
    "Decided",
    "DetachItem",
    "DetachResult",
    "Device",
    "DeviceAssign",
    "DeviceAssignments",
    "DeviceAttach",
    "DeviceChanged",
    "DeviceClasses",
    "DeviceClassesListed",
    "DeviceDetach",
    "DeviceExplain",
    "DeviceInfo",
    "DeviceList",
    "DeviceListed",
    "DeviceRef",
    "DeviceTold",
    "DeviceUnassign",
    "DevicesResume",
    "DevicesSuspend",
    "DomainChanged",
    "DomainInfo",
    "DomainList",
    "DomainListed",
    "DomainShutdown",
    "DomainStart",
    "DomainStarted",
    "Empty",
    "ErrorInfo",
    "ExplainResult",
    "ExportStart",
    "ExportStarted",
    "ExportState",
    "ExportStop",
    "Holder",
    "ImportStart",
    "ImportStarted",
    "ImportState",
    "ImportStop",
    "Listed",
    "Match",
    "Missing",
    "MissingIn",
    "Mode",
    "OperationStep",
    "OptionInfo",
    "PolicyErrorInfo",
    "PolicyExplain",
    "PolicyExplained",
    "PolicyMine",
    "PolicyStatus",
    "PolicySystem",
    "PolicyVerdict",
    "PromptAnswer",
    "PromptAsk",
    "PromptCall",
    "PromptCancel",
    "PrompterRegister",
    "Relative",
    "ReportPrefer",
    "ReportPreferred",
    "ServiceStatus",
    "SleepItem",
    "SleepResult",
    "Spec",
    "StatusResult",
    "Step",
    "SystemVm",
    "SystemVms",
    "TraceStep",
    "UnassignItem",
    "UnassignResult",
    "Verb",
    "Verdict",
    "VmChanged",
    "VmInfo",
    "VmList",
    "VmListed",
    "VmShutdown",
    "VmStart",
    "VmStarted",
    "VmState",
    "VmUsed",
    "VmsUsed",
    "WatchNext",
    "Watched",
    "parse_params",
    "parse_result",
    "to_wire",
]


# Listing

MISSING_MAX = 32  # VMs that a listing names as having more devices; the rest is counted


@attr.frozen
class DeviceList:
    """List devices of a class: of and in these `vms` (None: all), but not of or in `exclude`.

    An answer is one frame and holds some hundred devices; `after` is the last one of the previous
    answer, for the next.
    """

    device_class: ClassName
    vms: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] | None = None
    exclude: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)] = ()
    after: DeviceName | None = None


@attr.frozen
class AttachedTo:
    """The VM that a device is attached to now.

    `left_over`: why it is not free although the attachment should have ended; for dom0's user
    alone.
    """

    vm: VmName
    options: Options = attr.field(factory=dict)
    left_over: Text | None = attr.field(default=None, kw_only=True, metadata=since(2))


@attr.frozen
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


@attr.frozen
class MissingIn(Missing):
    """Devices that a VM, `backend`, has and does not report, so that they cannot be listed."""

    backend: VmName


@attr.frozen
class DeviceListed:
    """The devices that the caller may see, by VM and in natural order; `policy` is None for a VM.

    `more` says that there are further ones, to be had with `after`. `missing`, on the last of these
    answers, says which VMs have devices that are not listed, or may have, because they run without
    an agent; and why: those that fit into it, of `missing_vms` altogether.
    """

    devices: Annotated[tuple[Listed, ...], AtMost(ITEMS_MAX)]
    more: bool = False
    policy: PolicyStatus | None = None
    missing: Annotated[tuple[MissingIn, ...], AtMost(MISSING_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )
    missing_vms: Natural = attr.field(default=0, kw_only=True, metadata=since(2))


@attr.frozen
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


# Attaching and detaching


@attr.frozen
class DeviceAttach:
    """Attach a device to `vm`, and assign it too if `persistent`.

    `identity` is the one that the device had when it was chosen: one with another is refused.
    """

    device_class: ClassName
    vm: VmName
    backend: VmName
    device: DeviceId
    options: Options = attr.field(factory=dict)
    persistent: bool = False
    identity: Identity | None = attr.field(default=None, kw_only=True, metadata=since(2))


@attr.frozen
class AttachResult:
    """`options` are the ones in effect; `assigned` means that the VM does not run.

    `vm` is the one that has the device now, which policy or dom0's user may have chosen; None, and
    no options, for a VM that asked and must not know. `policy_ok` is that of `PolicyStatus`, for
    dom0's user. `note` is what the VM says of the device, if anything.
    """

    outcome: Literal["attached", "already", "assigned"]
    options: Options
    request: Text
    vm: VmName | None = None
    policy_ok: bool | None = attr.field(default=None, kw_only=True, metadata=since(2))
    note: Text | None = attr.field(default=None, kw_only=True, metadata=since(2))


@attr.frozen
class DeviceDetach:
    """Detach one device from `vm`, or all of the class: then `backend` and `device` are None.

    `force` takes it from a VM that uses it, too; for dom0's user alone."""

    device_class: ClassName
    vm: VmName
    backend: VmName | None = None
    device: DeviceId | None = None
    force: bool = False


@attr.frozen
class DetachItem:
    """The result for one device."""

    backend: VmName
    device: DeviceId
    detached: bool
    unassigned: bool
    error: ErrorInfo | None = None


@attr.frozen
class DetachResult:
    """One item for each device that was attached or assigned; `policy_ok` as in `AttachResult`."""

    results: Annotated[tuple[DetachItem, ...], AtMost(ITEMS_MAX)]
    request: Text
    policy_ok: bool | None = attr.field(default=None, kw_only=True, metadata=since(2))


# Watching


@attr.frozen
class WatchNext:
    """Wait for changes of what the caller may list.

    `numbering`, `number` and `begun` are those of the last answer; without `numbering`, the answer
    is everything that there is. Of devices, it has those of `device_class`, or of all classes.
    """

    device_class: ClassName | None = None
    numbering: Text | None = None
    number: Natural = 0
    begun: Natural = 0


@attr.frozen
class DeviceChanged:
    """A device as it is `now`; None if it cannot be listed any more."""

    number: Natural
    device_class: ClassName
    backend: VmName
    device: DeviceId
    now: Listed | None


@attr.frozen
class VmChanged:
    """A VM as it is `now`; None if it does not exist any more."""

    number: Natural
    vm: VmName
    now: VmInfo | None


@attr.frozen
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


# The service


@attr.frozen
class ServiceStatus:
    """Show the status of dom0's service."""


@attr.frozen
class StatusResult:
    """`uptime_s` is in seconds; `agents` are the VMs whose agents are connected; `troubles` say
    what the service cannot write to disk, and why."""

    version: Text
    uptime_s: Seconds
    policy: PolicyStatus
    agents: Annotated[tuple[VmName, ...], AtMost(ITEMS_MAX)]
    troubles: Annotated[tuple[Text, ...], AtMost(4)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )


#: All methods there are.
SCHEMA = Schema(
    {
        **agent_messages.SCHEMA,
        # a client to dom0; the first nine also by way of an agent, policy.mine only so
        "device.classes": Spec(DeviceClasses, DeviceClassesListed, since=2),
        "device.list": Spec(DeviceList, DeviceListed),
        "device.info": Spec(DeviceInfo, DeviceTold, since=2),
        "device.attach": Spec(DeviceAttach, AttachResult),
        "device.detach": Spec(DeviceDetach, DetachResult),
        "device.assign": Spec(DeviceAssign, AssignResult, since=2),
        "device.unassign": Spec(DeviceUnassign, UnassignResult, since=2),
        "device.assignments": Spec(DeviceAssignments, AssignmentsListed, since=2),
        "watch.next": Spec(WatchNext, Watched, since=2),
        "device.explain": Spec(DeviceExplain, ExplainResult),
        "devices.suspend": Spec(DevicesSuspend, SleepResult, since=2),
        "devices.resume": Spec(DevicesResume, SleepResult, since=2),
        "vm.list": Spec(VmList, VmListed),
        "vm.start": Spec(VmStart, VmStarted),
        "vm.shutdown": Spec(VmShutdown, Empty),
        "vm.used": Spec(VmUsed, VmsUsed, since=2),
        "operation.step": Spec(OperationStep, None, since=2),
        "service.status": Spec(ServiceStatus, StatusResult),
        "policy.explain": Spec(PolicyExplain, PolicyExplained),
        "policy.mine": Spec(PolicyMine, PolicyVerdict),
        "policy.system": Spec(PolicySystem, SystemVms),
        "prompter.register": Spec(PrompterRegister, Empty),
        # dom0 to a client that registered as a prompter
        "prompt.ask": Spec(PromptAsk, PromptAnswer),
        "prompt.call": Spec(PromptCall, PromptAnswer, since=2),
        "prompt.cancel": Spec(PromptCancel, None),
        # dom0 to the machine of local mode
        "domain.list": Spec(DomainList, DomainListed),
        "domain.start": Spec(DomainStart, DomainStarted),
        "domain.shutdown": Spec(DomainShutdown, Empty),
        "domain.changed": Spec(DomainChanged, None),
    }
)
parse_params = SCHEMA.parse_params
parse_result = SCHEMA.parse_result
