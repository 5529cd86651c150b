"""The messages about calls of services, between dom0 and the agents of both ends.

They are in `agent_messages` and in `messages` too; those of dom0's lists are in
`call_list_messages`.

A call: the agent of the caller asks dom0 (`service.call`), dom0 decides, and both agents get a
channel of their own for the bytes: the caller's agent is its server (`channel.listen`) and the
service's agent its client (`service.start`). dom0's answer to the caller means that the call is
allowed and that the channel can be used; whatever fails after it is said in the channel, or by
`service.kill`. Each of the two agents tells once how its side of the call has ended.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated, Literal

from .fields import (
    AtMost,
    CallId,
    CallTarget,
    Domid,
    EndText,
    Natural,
    Order,
    Port,
    Seconds,
    ServiceArgument,
    ServiceName,
    Status,
    Text,
    UserName,
    VmName,
)
from .frozen import frozen
from .schema import Empty, Spec

#: Requests of one agent for a call without an answer, each of which may wait for dom0's user or a
#: VM that starts: less than the requests of a connection, which has others too.
CALLS_ASKED_MAX = 96
#: Seconds for which an agent waits for that answer. dom0's own time-outs are shorter: a question, a
#: start of a VM and the setting up of a channel one after the other.
CALL_TIMEOUT = 900.0
#: Calls in an answer to call.running; with the longest of texts they fill most of a frame.
RUNNING_PAGE_MAX = 64
#: Ports in such an answer: a VM has some tens of channels.
PORTS_MAX = 256

#: How a call ended: the service exited with a status or by a signal; there was a problem (which the
#: text says); it was refused; there is no such service; the caller went away; the other VM or its
#: agent did.
EndKind = Literal["exited", "signalled", "problem", "refused", "not_found", "aborted", "lost"]
Side = Literal["caller", "service"]

# An agent to dom0


@frozen
class ServiceCall:
    """A program in the agent's VM calls a service of `target`, which "" and keywords leave to dom0.

    `user` is the one that the service is to run as, which dom0 alone may choose. `uid` is the
    calling program's, as the kernel told the agent; dom0 believes it of its own agent.
    """

    service: ServiceName
    argument: ServiceArgument
    target: CallTarget
    user: UserName | None = None
    uid: Natural | None = None


@frozen
class ServiceCalled:
    """The call is allowed: the channel to the domain `peer` on `port` is this call's.

    With `new` this agent was told to listen for it, and the other end connects now; otherwise it is
    open and idle. `target` is the VM that policy has chosen, for a caller in dom0; None for a VM,
    which must not know.
    """

    call: CallId
    request: Text
    peer: Domid
    port: Port
    new: bool
    target: VmName | None = None


@frozen
class ServiceStarted:
    """The service runs now, after an answer to `service.start` that it did not yet."""

    call: CallId


@frozen
class ServiceEnded:
    """This agent's side of a call has ended; the last word about it.

    `status` is that of "exited" (0 to 255) or the signal's number, and of no meaning otherwise: 0,
    or the exit status of such an end. `stdin`, `stdout` and `stderr` are bytes. `started_s` are the
    seconds from the agent's beginning with it until the service ran, None if it never did;
    `seconds` those until its end. With `reusable` both ends of the channel have said END, and it is
    empty; otherwise `reason` is why not. `breach`: the other end broke the protocol of the channel.
    """

    call: CallId
    kind: EndKind
    status: Status
    text: EndText
    stdin: Natural
    stdout: Natural
    stderr: Natural
    started_s: Seconds | None
    seconds: Seconds
    reusable: bool
    reason: EndText = ""
    breach: bool = False


@frozen
class ChannelClosed:
    """A channel that was idle, or listened, has ended by itself."""

    port: Port
    reason: EndText


# dom0 to an agent


@frozen
class ChannelListen:
    """Listen for the domain `peer` on `port`: answered when it can connect.

    The orders are log2 of the bytes of the rings, from the client to this server and back. Without
    room for it the answer is `quota`, with the count and the limit.
    """

    peer: Domid
    port: Port
    left_order: Order
    right_order: Order


@frozen
class ChannelClose:
    """Close a channel that has no call. An unknown port is fine: it is closed."""

    port: Port


@frozen
class ServiceStart:
    """Start the service for a call over the channel to the domain `peer` on `port`.

    With `new` the other end listens there, and this one connects; otherwise it is open and idle.
    `requested_target` is what the caller named: a keyword with `@`, or a VM. `stderr`: the
    service's goes to the caller. An error means that the channel cannot be used. That the service
    is not there, or cannot be started, is said in the channel, and then by `service.ended`.
    """

    call: CallId
    service: ServiceName
    argument: ServiceArgument
    source: VmName
    requested_target: CallTarget
    user: UserName | None
    peer: Domid
    port: Port
    new: bool
    stderr: bool


@frozen
class ServiceStarting:
    """Whether it runs already; otherwise it waits for something, such as a session of its user, and
    `service.started` follows."""

    started: bool


@frozen
class ServiceKill:
    """End a call, of which this agent has one side: as `kind` and `status`, and `text` says why.

    Answered when that has begun; an unknown call has ended. `service.ended` follows as always.
    """

    call: CallId
    kind: EndKind
    status: Status
    text: EndText


@frozen
class CallRunning:
    """List the calls of which this agent has a side, in the order of their ids; those after
    `after`."""

    after: CallId | None = None


@frozen
class RunningCall:
    """A call at one side. `seconds` since it began there; bytes so far."""

    call: CallId
    side: Side
    service: ServiceName
    argument: ServiceArgument
    user: UserName | None
    peer: Domid
    port: Port
    seconds: Seconds
    stdin: Natural
    stdout: Natural
    stderr: Natural


@frozen
class CallsRunning:
    """`ports` are those of channels without a call, on the first page; `more`: there are further
    calls."""

    calls: Annotated[tuple[RunningCall, ...], AtMost(RUNNING_PAGE_MAX)]
    ports: Annotated[tuple[Port, ...], AtMost(PORTS_MAX)] = ()
    more: bool = False


#: The methods between dom0 and an agent, which all came with version 2.
METHODS = {
    # dom0 to an agent
    "channel.listen": Spec(ChannelListen, Empty, since=2),
    "channel.close": Spec(ChannelClose, Empty, since=2),
    "service.start": Spec(ServiceStart, ServiceStarting, since=2),
    "service.kill": Spec(ServiceKill, Empty, since=2),
    "call.running": Spec(CallRunning, CallsRunning, since=2),
    # an agent to dom0
    "service.call": Spec(ServiceCall, ServiceCalled, since=2),
    "service.started": Spec(ServiceStarted, None, since=2),
    "service.ended": Spec(ServiceEnded, None, since=2),
    "channel.closed": Spec(ChannelClosed, None, since=2),
}
