"""The messages about VMs, and about what an operation waits for them to do.

They are in `messages` too. The machine of local mode, which asks what VMs use before it stops,
imports no others.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

from .codec import ITEMS_MAX
from .fields import ATTACHMENTS_MAX, AtMost, Domid, Text, VmName
from .frozen import frozen
from .machine_messages import VmState
from .schema import Empty, Schema, Spec


@frozen
class VmList:
    """List all VMs."""


@frozen
class VmInfo:
    """A VM; `domid` is None if it does not run, `agent` says whether its agent is connected."""

    name: VmName
    state: VmState
    domid: Domid | None
    agent: bool


@frozen
class VmListed:
    """All VMs, dom0 included if it is asked for by the driver."""

    vms: Annotated[tuple[VmInfo, ...], AtMost(ITEMS_MAX)]


@frozen
class VmStart:
    """Start a VM and attach the devices that are assigned to it."""

    vm: VmName


@frozen
class VmStarted:
    """`attached` names the devices, each `BACKEND:DEVICE`."""

    domid: Domid
    attached: Annotated[tuple[Text, ...], AtMost(ATTACHMENTS_MAX)] = ()


@frozen
class VmShutdown:
    """Shut a VM down; `force` does not wait for it."""

    vm: VmName
    force: bool = False


@frozen
class VmUsed:
    """List the borrowed devices that VMs use."""


@frozen
class VmsUsed:
    """One sentence for each device; if there are very many, the first ones."""

    used: Annotated[tuple[Text, ...], AtMost(ATTACHMENTS_MAX)]


# Operations

#: What an operation can wait for: an agent to connect, a source to identify a new device, dom0's
#: user to answer, a source to lend, the toolstack to attach, a target to take; a target to give
#: back, the toolstack to detach, a source to end it; a VM to be made, to boot, to go down.
Step = Literal[
    "connect",
    "look",
    "answer",
    "lend",
    "attach",
    "take",
    "return",
    "detach",
    "end",
    "make",
    "boot",
    "stop",
]


@frozen
class OperationStep:
    """The operation `request`, for which this command waits, now waits for `vm` to do `step`."""

    request: Text
    step: Step
    vm: VmName
    device: Text = ""


SCHEMA = Schema(
    {
        # a client to dom0
        "vm.list": Spec(VmList, VmListed),
        "vm.start": Spec(VmStart, VmStarted),
        "vm.shutdown": Spec(VmShutdown, Empty),
        "vm.used": Spec(VmUsed, VmsUsed, since=2),
        "operation.step": Spec(OperationStep, None, since=2),
    }
)
parse_result = SCHEMA.parse_result
