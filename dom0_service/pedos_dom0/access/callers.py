"""Who asks, and how much of an error each may see.

A caller is dom0's user or a VM (through its control channel, which identifies the VM). dom0's user
comes through root's own socket, or with less authority through that of the desktop. A refusal tells
dom0's user the rule, and a VM only that it was denied.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.errors import CallError

from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import DeniedError, PublicError, QuotaError, ToldError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def _no_wait() -> None:
    pass


@attrs.frozen(eq=False)
class CallerKind:
    """What callers of one kind may know and do beyond what rules allow."""

    name: str
    # Learns the reason: the rule, the whole error, and whether the policy in force matches its
    # files. For any other caller, the service's log has the reason of a denial.
    sees_rules: bool
    # Knows all VMs and devices, and what its request waits for. Any other caller learns only of
    # those that are its own or that policy lets it have, also from the duration of an answer.
    sees_all: bool
    # Can take a device away from a VM that uses it.
    may_force: bool
    # Can remove an assignment that no rule is about, see Authorizer.needs_no_rule.
    may_unassign: bool
    # May name a class that this dom0 does not know, to take away what a newer one has left.
    names_left: bool
    # Its requests without success are counted in the audit log rather than written, once they are
    # many: otherwise they would push everything else out of the log.
    throttled: bool
    # A question of its that was not granted is not asked again at once.
    cools_down: bool


# The service itself, which attaches what dom0's user has assigned: as dom0, and without force.
AUTO = CallerKind(
    "auto",
    sees_rules=True,
    sees_all=True,
    may_force=False,
    may_unassign=False,
    names_left=False,
    throttled=False,
    cools_down=False,
)
# Root, or in local mode the machine's user.
LOCAL = CallerKind(
    "local",
    sees_rules=True,
    sees_all=True,
    may_force=True,
    may_unassign=True,
    names_left=True,
    throttled=False,
    cools_down=False,
)
# A user of dom0's desktop, who is not root: as dom0's user, less what only root may ask for. Its
# programs are throttled, so that one that goes wild does not empty the audit log.
DESKTOP = CallerKind(
    "desktop",
    sees_rules=True,
    sees_all=True,
    may_force=False,
    may_unassign=True,
    names_left=False,
    throttled=True,
    cools_down=False,
)
VM = CallerKind(
    "vm",
    sees_rules=False,
    sees_all=False,
    may_force=False,
    may_unassign=False,
    names_left=False,
    throttled=True,
    cools_down=True,
)


@attrs.frozen
class Caller:
    """The sender of a request. `name` is its name in policy and audit log: a VM's name according to
    its domain, or dom0. A request awaits `turn` before each part of long work, so that no VM and
    no user of the desktop keeps dom0 busy."""

    kind: CallerKind
    name: str
    # Its name in the audit log, where that says more.
    asker: str = ""
    turn: Callable[[], Awaitable[None]] = attrs.field(
        default=_no_wait, eq=False, repr=False, kw_only=True
    )

    # Its name in the audit log.
    audited: str = attrs.field(init=False, eq=False, repr=False)

    @audited.default
    def _audited(self) -> str:
        return self.asker or self.name


DOM0_USER = Caller(kind=LOCAL, name=DOM0_NAME, turn=trio.lowlevel.checkpoint)
AUTOSTART = Caller(kind=AUTO, name=DOM0_NAME, asker="autostart", turn=trio.lowlevel.checkpoint)
AUTO_ATTACH = Caller(kind=AUTO, name=DOM0_NAME, asker="auto-attach", turn=trio.lowlevel.checkpoint)


def desktop_user(
    uid: int, turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
) -> Caller:
    """A user of dom0's desktop. Rules see dom0, and the audit log says who it was."""
    return Caller(
        kind=DESKTOP,
        name=DOM0_NAME,
        asker=f"{DOM0_NAME} (uid {uid})",
        turn=turn,
    )


def program_in_dom0(uid: int | None) -> Caller:
    """A program of dom0's user that comes by dom0's own agent, which tells whose it is: root's or
    this service's own user's, or one of the desktop."""
    return DOM0_USER if uid in (0, os.geteuid()) else desktop_user(-1 if uid is None else uid)


# A VM gets this instead of a sentence that could name other VMs.
_FOR_VMS = {
    "busy": "what it needs is in use",
    "denied": "it is not allowed",
    "failed": "it could not be done; dom0's audit log has the reason under this request",
    "timeout": "it took too long",
    "unavailable": "the service cannot do it now",
}


def as_told(caller: Caller, error: CallError, request: str) -> CallError:
    """`error` as this caller may see it: whole for dom0's user, nearly nothing for a VM.

    The one place that empties answers to VMs. `usage` and `not_found` keep their sentence: they
    only concern what the VM said, did or owns itself. So does the VM's own quota; that of another
    VM is a failure like any other, because it shows how much that VM has or lends.
    """
    if caller.kind.sees_rules:
        return CallError(error.code, error.message, {**error.data, "request": request})
    code, message = error.code, error.message
    if code == "quota" and not (isinstance(error, QuotaError) and error.owner == caller.name):
        code = "failed"
    if isinstance(error, DeniedError):
        message = error.about
    elif isinstance(error, ToldError):
        message = error.told
    elif not isinstance(error, PublicError):
        message = _FOR_VMS.get(code, message)
    return CallError(code, message, {"request": request})
