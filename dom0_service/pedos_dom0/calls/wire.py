"""A call in the words of agents and of the audit log. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.messages import ServiceStart
from pedos_protocol.names import is_user_name

from pedos_dom0 import errors
from pedos_dom0.drivers.base import DOM0_NAME

if TYPE_CHECKING:
    from pedos_protocol.errors import CallError
    from pedos_protocol.messages import EndKind

    from pedos_dom0.access.authorizer import Grant
    from pedos_dom0.calls.call import Call


def start_of(call: Call) -> ServiceStart:
    """What the agent of the target is told of a call that has a channel."""
    assert call.channel is not None
    return ServiceStart(
        call=call.id,
        service=call.subject.service,
        argument=call.subject.argument,
        source=call.source.name,
        requested_target=call.requested,
        user=call.user,
        peer=call.source.domid,
        port=call.channel.port,
        new=call.had_new_channel,
        # What services of dom0 write there is for dom0 alone.
        stderr=call.target != DOM0_NAME,
    )


def end_kind(error: CallError) -> EndKind:
    """How a call ends that fails with this error."""
    kinds: dict[str, EndKind] = {"denied": "refused", "not_found": "not_found"}
    return kinds.get(error.code, "problem")


def outcome_of(error: CallError) -> str:
    """The outcome of such a call, in the audit log."""
    return "denied" if error.code == "denied" else f"{error.code}: {error.message}"


def user_of(grant: Grant, asked_for: str | None) -> str | None:
    """The user that the service runs as, if policy or dom0's user has chosen one. CallError."""
    if grant.user is None:
        return asked_for
    if asked_for not in (None, grant.user):
        raise errors.another_user(grant.user)
    if not is_user_name(grant.user):
        raise errors.no_such_user(grant.user)
    return grant.user
