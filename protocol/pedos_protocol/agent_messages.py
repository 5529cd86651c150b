"""The messages between dom0 and a VM's agent: exports, imports, and the agent's devices.

Those about calls of services are in `call_messages`; SCHEMA has the methods of both. They are in
`messages` too. An agent imports no others, which would take a fifth of its start.

The two sides may be of different versions, so only one of them may know a device class: here it is
a name. The receiver of a message drops devices of a class that it does not know.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

import attr

from . import call_messages
from .device_classes import CLASSES_MAX
from .fields import (
    ATTACHMENTS_MAX,
    OPTIONAL,
    PAGE_DEVICES_MAX,
    PREFERRED_MAX,
    SHARES_MAX,
    AtMost,
    AttachmentId,
    ClassName,
    DeviceId,
    DiskNumber,
    Domid,
    Handover,
    Identity,
    Instance,
    Line,
    NameInTarget,
    Natural,
    Port,
    VmName,
    since,
)
from .frozen import frozen
from .schema import Empty, Schema, Spec

# Between dom0 and an agent: exports and imports


@frozen
class ExportStart:
    """Lend `device` to the domain `peer`: answered when the source listens on `port`.

    `instance` is the device of the decision, as the agent had reported it: another one that has the
    id by now is refused. `again`: it is lent to that domain already, and a restarted agent has to
    hold it. `vm` is the peer's name, for people. `muted`: it gets silence from the first moment on,
    see `ExportMute`.
    """

    attachment: AttachmentId
    device_class: ClassName
    device: DeviceId
    port: Port
    peer: Domid
    read_only: bool
    instance: Instance = attr.field(default="", kw_only=True, metadata=since(2))
    again: bool = attr.field(default=False, kw_only=True, metadata=since(2))
    vm: VmName | None = attr.field(default=None, kw_only=True, metadata=since(2))
    muted: bool = attr.field(default=False, kw_only=True, metadata=since(2))


@frozen
class ExportStarted:
    """The number of the block device that is held ready, where the hypervisor opens it by name.

    `handover` is what the target's agent needs to know of the device, where the agents carry it.
    """

    number: DiskNumber | None = attr.field(default=None, kw_only=True, metadata=since(2))
    handover: Handover | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class ExportStop:
    """End an export. An unknown attachment is fine: it has ended."""

    attachment: AttachmentId


@frozen
class ExportMute:
    """Give the target silence (`muted`), or again what there is to hear.

    Answered when it is so. Until then a target may hear something that it is not to hear; an error
    leaves it as it was. `not_found`: there is no such export.
    """

    attachment: AttachmentId
    muted: bool


@frozen
class ImportStart:
    """Take a device of the domain `peer`: answered when it can be used in the target.

    `frontend` is the name in the target that is wished for; None leaves it to the agent. `handover`
    is what the source's agent answered: only the agents' class can read it. `description` is that
    of the device, for people.
    """

    attachment: AttachmentId
    device_class: ClassName
    backend: VmName
    device: DeviceId
    port: Port
    peer: Domid
    read_only: bool
    frontend: NameInTarget | None = attr.field(default=None, metadata=OPTIONAL)
    handover: Handover | None = attr.field(default=None, kw_only=True, metadata=since(2))
    description: Line = attr.field(default="", kw_only=True, metadata=since(2))


@frozen
class ImportStarted:
    """The name of the device in the target; None if its class has no such names. `note` is what a
    user should know of the device there, if anything."""

    frontend: NameInTarget | None = attr.field(default=None, metadata=OPTIONAL)
    note: Line | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class ImportStop:
    """End an import, gracefully and then by force. An unknown one is fine.

    `busy` if it is used, on Xen always and elsewhere if the VM `may_refuse`. `frontend` is its name
    in the VM: a restarted agent checks whether it is used, too. `device_class` is its class;
    without it, that of the attachment, or `device_classes.UNNAMED`.
    """

    attachment: AttachmentId
    may_refuse: bool = attr.field(default=False, kw_only=True, metadata=since(2))
    frontend: NameInTarget | None = attr.field(default=None, kw_only=True, metadata=since(2))
    device_class: ClassName | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class ImportCheck:
    """Say `busy` if a VM that may refuse would refuse `import.stop` now. Ends nothing."""

    attachment: AttachmentId
    frontend: NameInTarget | None = attr.field(default=None, kw_only=True, metadata=OPTIONAL)
    device_class: ClassName | None = attr.field(default=None, kw_only=True, metadata=OPTIONAL)


# What an agent reports


@frozen
class Device:
    """A device that a VM could lend.

    `instance` distinguishes it: another text when another device has the id, even one that looks
    the same. Only this agent can interpret it; "" tells nothing.

    `size` is in bytes. `parent` is the id of the device of which this is a part: a partition's
    disk. It is of the class `parent_class`, because a disk's parent may be its USB stick; None is
    its own class. `busy` says why it cannot be lent now (mounted...), None that it can. `stale` is
    why the last look could not tell all this, which then is from the look before, or was never
    known; None that it is current. `shares` are the ids of devices that have some of the same data,
    beside its disk and its partitions. `alias` is another id that a request may name it by.
    """

    device_class: ClassName
    device: DeviceId
    identity: Identity
    description: Line
    size: Natural | None
    parent: DeviceId | None
    read_only: bool
    busy: Line | None
    instance: Instance = attr.field(default="", kw_only=True, metadata=since(2))
    stale: Line | None = attr.field(default=None, kw_only=True, metadata=since(2))
    parent_class: ClassName | None = attr.field(default=None, kw_only=True, metadata=since(2))
    shares: Annotated[tuple[DeviceId, ...], AtMost(SHARES_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )
    alias: DeviceId | None = attr.field(default=None, kw_only=True, metadata=since(2))


@frozen
class ExportState:
    """An export that an agent serves, of that `instance` of the device.

    `muted`: the target gets silence. `listening`: somebody in it records now.
    """

    attachment: AttachmentId
    device_class: ClassName
    device: DeviceId
    peer: Domid
    port: Port
    read_only: bool
    instance: Instance = attr.field(default="", kw_only=True, metadata=since(2))
    muted: bool = attr.field(default=False, kw_only=True, metadata=since(2))
    listening: bool = attr.field(default=False, kw_only=True, metadata=since(2))


@frozen
class ImportState:
    """An import that an agent holds."""

    attachment: AttachmentId
    device_class: ClassName
    backend: VmName
    device: DeviceId
    peer: Domid
    port: Port
    read_only: bool
    frontend: NameInTarget | None = attr.field(default=None, metadata=OPTIONAL)


@frozen
class Missing:
    """Devices of a class that a VM has and does not report.

    `count` is None when the agent cannot tell how many, nor whether there are any: it could not
    look.
    """

    device_class: ClassName
    count: Natural | None
    reason: Line


@frozen
class AgentReport:
    """One page of all that an agent has. `revision` counts its reports, from the agent's start.

    A report is complete when its `last` page has come; pages count from 0, come in order, and have
    the same revision. Exports and imports are on the first page, what is missing on the last.
    """

    revision: Natural
    devices: Annotated[tuple[Device, ...], AtMost(PAGE_DEVICES_MAX)]
    exports: Annotated[tuple[ExportState, ...], AtMost(ATTACHMENTS_MAX)]
    imports: Annotated[tuple[ImportState, ...], AtMost(ATTACHMENTS_MAX)]
    page: Natural = attr.field(default=0, kw_only=True, metadata=since(2))
    last: bool = attr.field(default=True, kw_only=True, metadata=since(2))
    missing: Annotated[tuple[Missing, ...], AtMost(CLASSES_MAX)] = attr.field(
        default=(), kw_only=True, metadata=since(2)
    )


@frozen
class DeviceRef:
    """A device of the VM that gets the request."""

    device_class: ClassName
    device: DeviceId


@frozen
class ReportPrefer:
    """Report these devices before others when not all fit, whether they exist now or not.

    They replace those that were named before. Lent devices come first in any case.
    """

    devices: Annotated[tuple[DeviceRef, ...], AtMost(PREFERRED_MAX)]


@frozen
class ReportPreferred:
    """The first report that follows it has this `revision` or a later one."""

    revision: Natural


@frozen
class AttachmentEnded:
    """An attachment ended by itself, on this `side` ("export" or "import")."""

    attachment: AttachmentId
    side: Literal["export", "import"]
    reason: Line


@frozen
class AttachmentListening:
    """Somebody in the target of an export begins to record, or nobody does any more."""

    attachment: AttachmentId
    listening: bool


#: The methods between dom0 and an agent.
SCHEMA = Schema(
    {
        # dom0 to an agent
        "export.start": Spec(ExportStart, ExportStarted),
        "export.stop": Spec(ExportStop, Empty),
        "export.mute": Spec(ExportMute, Empty, since=2),
        "import.start": Spec(ImportStart, ImportStarted),
        "import.stop": Spec(ImportStop, Empty),
        "import.check": Spec(ImportCheck, Empty, since=2),
        "report.prefer": Spec(ReportPrefer, ReportPreferred, since=2),
        # an agent to dom0
        "agent.report": Spec(AgentReport, Empty),
        "attachment.ended": Spec(AttachmentEnded, None),
        "attachment.listening": Spec(AttachmentListening, None, since=2),
        **call_messages.METHODS,
    }
)
parse_params = SCHEMA.parse_params
