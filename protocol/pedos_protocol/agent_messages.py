"""The messages between dom0 and a VM's agent: exports, imports, and what the agent has.

They are in `messages` too. An agent imports no others, which would take a fifth of its start.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

import attr

from .fields import (
    ATTACHMENTS_MAX,
    DEVICES_MAX,
    AtMost,
    AttachmentId,
    DeviceClass,
    DeviceId,
    Domid,
    Frontend,
    Identity,
    Line,
    Natural,
    Port,
    VmName,
)
from .schema import Empty, Schema, Spec

# Between dom0 and an agent: exports and imports


@attr.frozen
class ExportStart:
    """Lend `device` to the domain `peer`: answered when the source listens on `port`."""

    attachment: AttachmentId
    device_class: DeviceClass
    device: DeviceId
    port: Port
    peer: Domid
    read_only: bool


@attr.frozen
class ExportStop:
    """End an export. An attachment that is not known is fine: it has ended."""

    attachment: AttachmentId


@attr.frozen
class ImportStart:
    """Take a device of the domain `peer`: answered when it can be used in the target.

    `frontend` is the block device's name that is wished for; None leaves it to the agent.
    """

    attachment: AttachmentId
    device_class: DeviceClass
    backend: VmName
    device: DeviceId
    port: Port
    peer: Domid
    read_only: bool
    frontend: Frontend | None


@attr.frozen
class ImportStarted:
    """The name that the device has in the target."""

    frontend: Frontend


@attr.frozen
class ImportStop:
    """End an import, gracefully and then by force; on Xen `busy` if used. Not known is fine."""

    attachment: AttachmentId


# What an agent reports


@attr.frozen
class Device:
    """A device that a VM could lend.

    `size` is in bytes. `parent` is the id of the disk of which this is a partition. `busy` says
    why it cannot be lent now (mounted...), None that it can.
    """

    device_class: DeviceClass
    device: DeviceId
    identity: Identity
    description: Line
    size: Natural | None
    parent: DeviceId | None
    read_only: bool
    busy: Line | None


@attr.frozen
class ExportState:
    """An export that an agent serves."""

    attachment: AttachmentId
    device_class: DeviceClass
    device: DeviceId
    peer: Domid
    port: Port
    read_only: bool


@attr.frozen
class ImportState:
    """An import that an agent holds."""

    attachment: AttachmentId
    device_class: DeviceClass
    backend: VmName
    device: DeviceId
    peer: Domid
    port: Port
    read_only: bool
    frontend: Frontend


@attr.frozen
class AgentReport:
    """All that an agent has. `revision` counts its reports, from the agent's start."""

    revision: Natural
    devices: Annotated[tuple[Device, ...], AtMost(DEVICES_MAX)]
    exports: Annotated[tuple[ExportState, ...], AtMost(ATTACHMENTS_MAX)]
    imports: Annotated[tuple[ImportState, ...], AtMost(ATTACHMENTS_MAX)]


@attr.frozen
class AttachmentEnded:
    """An attachment ended by itself, on this `side` ("export" or "import")."""

    attachment: AttachmentId
    side: Literal["export", "import"]
    reason: Line


#: The methods between dom0 and an agent.
SCHEMA = Schema(
    {
        # dom0 to an agent
        "export.start": Spec(ExportStart, Empty),
        "export.stop": Spec(ExportStop, Empty),
        "import.start": Spec(ImportStart, ImportStarted),
        "import.stop": Spec(ImportStop, Empty),
        # an agent to dom0
        "agent.report": Spec(AgentReport, Empty),
        "attachment.ended": Spec(AttachmentEnded, None),
    }
)
parse_params = SCHEMA.parse_params
