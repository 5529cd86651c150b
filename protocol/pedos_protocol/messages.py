"""All messages: one class for each, and one table that says which method carries which.

This module has those between a client and dom0 about attaching and detaching; `listing_messages`
those about lists of devices and their changes, `info_messages` those about one device,
`assignment_messages` those about assignments, `audit_messages` those about the audit log,
`call_list_messages` those about lists of calls, `class_messages` those about device classes,
`mute_messages` those about muting, `sleep_messages` those about the machine's sleep, `vm_messages`
those about VMs, `policy_messages` those about policy, `agent_messages` and `call_messages` dom0's
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

from . import agent_messages, machine_messages, vm_messages
from .agent_messages import (
    AgentReport,
    AttachmentEnded,
    AttachmentListening,
    Device,
    DeviceRef,
    ExportMute,
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
    UnassignItem,
    UnassignResult,
)
from .audit_messages import AuditRecent, AuditTold
from .call_list_messages import CallEnd, CallInfo, CallList, CallsListed, CallState
from .call_messages import (
    CallRunning,
    CallsRunning,
    ChannelClose,
    ChannelClosed,
    ChannelListen,
    EndKind,
    RunningCall,
    ServiceCall,
    ServiceCalled,
    ServiceEnded,
    ServiceKill,
    ServiceStart,
    ServiceStarted,
    ServiceStarting,
    Side,
)
from .class_messages import ClassInfo, DeviceClasses, DeviceClassesListed, OptionInfo
from .codec import ITEMS_MAX
from .fields import (
    AtMost,
    ClassName,
    DeviceId,
    Identity,
    Natural,
    Options,
    Seconds,
    Text,
    VmName,
    since,
)
from .frozen import frozen
from .info_messages import Decided, DeviceInfo, DeviceTargets, Relative, Target, TargetsTold
from .listing_messages import (
    AttachedTo,
    DeviceChanged,
    DeviceList,
    DeviceListed,
    DeviceTold,
    Listed,
    MissingIn,
    VmChanged,
    Watched,
    WatchNext,
)
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
from .mute_messages import DeviceMute, MuteItem, MuteResult
from .policy_messages import (
    DeviceExplain,
    ExplainResult,
    Mode,
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
    "AttachmentListening",
    "AuditRecent",
    "AuditTold",
    "CallEnd",
    "CallInfo",
    "CallList",
    "CallRunning",
    "CallState",
    "CallsListed",
    "CallsRunning",
    "ChannelClose",
    "ChannelClosed",
    "ChannelListen",
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
    "DeviceMute",
    "DeviceRef",
    "DeviceTargets",
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
    "EndKind",
    "ErrorInfo",
    "ExplainResult",
    "ExportMute",
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
    "MuteItem",
    "MuteResult",
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
    "RunningCall",
    "ServiceCall",
    "ServiceCalled",
    "ServiceEnded",
    "ServiceKill",
    "ServiceStart",
    "ServiceStarted",
    "ServiceStarting",
    "ServiceStatus",
    "Side",
    "SleepItem",
    "SleepResult",
    "Spec",
    "StatusResult",
    "Step",
    "SystemVm",
    "SystemVms",
    "Target",
    "TargetsTold",
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


# Attaching and detaching


@frozen
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


@frozen
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


@frozen
class DeviceDetach:
    """Detach one device from `vm`, or all of the class: then `backend` and `device` are None.

    `force` takes it from a VM that uses it, too; for dom0's user alone. `identity` is the one that
    the device had when it was chosen: another one stays where it is.
    """

    device_class: ClassName
    vm: VmName
    backend: VmName | None = None
    device: DeviceId | None = None
    force: bool = False
    identity: Identity | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class DetachItem:
    """The result for one device."""

    backend: VmName
    device: DeviceId
    detached: bool
    unassigned: bool
    error: ErrorInfo | None = None


@frozen
class DetachResult:
    """One item for each device that was attached or assigned; `policy_ok` as in `AttachResult`.

    `unassigned` are assignments to an identity that no device has, less `unassigned_left_out` that
    an answer cannot hold.
    """

    results: Annotated[tuple[DetachItem, ...], AtMost(ITEMS_MAX)]
    request: Text
    policy_ok: bool | None = attr.field(default=None, kw_only=True, metadata=since(2))
    unassigned: Annotated[tuple[UnassignItem, ...], AtMost(ITEMS_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )
    unassigned_left_out: Natural = attr.field(default=0, kw_only=True, metadata=since(2))


# The service


@frozen
class ServiceStatus:
    """Show the status of dom0's service."""


@frozen
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
        "device.mute": Spec(DeviceMute, MuteResult, since=2),
        "device.explain": Spec(DeviceExplain, ExplainResult),
        "device.targets": Spec(DeviceTargets, TargetsTold, since=2),
        "devices.suspend": Spec(DevicesSuspend, SleepResult, since=2),
        "devices.resume": Spec(DevicesResume, SleepResult, since=2),
        **vm_messages.SCHEMA,
        "service.status": Spec(ServiceStatus, StatusResult),
        "policy.explain": Spec(PolicyExplain, PolicyExplained),
        "policy.mine": Spec(PolicyMine, PolicyVerdict),
        "policy.system": Spec(PolicySystem, SystemVms),
        "prompter.register": Spec(PrompterRegister, Empty),
        "audit.recent": Spec(AuditRecent, AuditTold, since=2),
        "call.list": Spec(CallList, CallsListed, since=2),
        "call.end": Spec(CallEnd, Empty, since=2),
        # dom0 to a client that registered as a prompter
        "prompt.ask": Spec(PromptAsk, PromptAnswer),
        "prompt.call": Spec(PromptCall, PromptAnswer, since=2),
        "prompt.cancel": Spec(PromptCancel, None),
        **machine_messages.SCHEMA,
    }
)
parse_params = SCHEMA.parse_params
parse_result = SCHEMA.parse_result
