"""The messages between dom0 and its clients about the calls of services that there are.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

from .codec import ITEMS_MAX
from .fields import (
    AtMost,
    CallId,
    Natural,
    Seconds,
    ServiceArgument,
    ServiceName,
    Text,
    UserName,
    VmName,
    Word,
)
from .frozen import frozen

CallState = Literal["asking", "waiting", "starting", "running", "ending"]


@frozen
class CallList:
    """List the calls of all VMs, one frame an answer; `after` is the number of the last one of the
    previous answer."""

    after: Natural | None = None


@frozen
class CallInfo:
    """A call as dom0 has it; `number` counts calls since the service was started.

    `by` says who called where that is more than `source`, a user of dom0's desktop. `requested` is
    the target that the caller named, and `target` the VM that policy has chosen, None before that.
    "asking": dom0's user is asked; "waiting": for room among the calls that run, or for a VM that
    starts; "starting": until the service runs; "ending": one of the two sides has ended. Bytes are
    those that the agents tell now, None if they do not.
    """

    call: CallId
    number: Natural
    request: Text
    source: VmName
    by: Text
    target: VmName | None
    requested: Word
    service: ServiceName
    argument: ServiceArgument
    user: UserName | None
    state: CallState
    seconds: Seconds
    stdin: Natural | None = None
    stdout: Natural | None = None
    stderr: Natural | None = None


@frozen
class CallsListed:
    """The calls in the order in which they began; `more`: there are further ones."""

    calls: Annotated[tuple[CallInfo, ...], AtMost(ITEMS_MAX)]
    more: bool = False


@frozen
class CallEnd:
    """End a call, whatever its state: answered when both agents have told the ends of their sides.
    With the error `timeout` if one has not in some seconds: it has been asked to, and still may."""

    call: CallId
