"""A call in the audit log: one line when the service runs or will not, and one at its end.

Before them stand the lines of the decision and of a question, under the same request. A VM can make
calls as often as it is allowed to, so granted ones have a throttle of their own: they do not use up
the lines for what it is denied, and sums name them. What dom0's user ends is always written, and
for a user of the desktop as long as that one has lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from pedos_dom0.audit.call_sum import Called
from pedos_dom0.audit.log import new_request_id
from pedos_dom0.drivers.base import DOM0_NAME

ADOPTED = "the agents of both sides have it after a restart of dom0's service"
UNTOLD = "its agent could not tell it at once, as it had no connection to dom0's service"

if TYPE_CHECKING:
    from pedos_protocol.messages import RunningCall, ServiceEnded

    from pedos_dom0.calls.call import Call
    from pedos_dom0.state import State


def began(state: State, call: Call, outcome: str) -> None:
    """Records the beginning, once: "started", or an error's code and sentence."""
    if call.began_is_told:
        return
    call.began_is_told = True
    granted = call.channel is not None
    of, throttled = call.caller.audited, call.caller.kind.throttled
    is_dom0s_users = _is_dom0s_users(state, call)
    if granted:
        has_begun = outcome == "started"
        if not is_dom0s_users and _counted(
            state, "call", call, call_id=call.id, has_begun=has_begun
        ):
            return
    else:
        state.call_throttle.forget(call.request)
        if not is_dom0s_users and state.audit_throttle.counts(
            "call", of=of, throttled=throttled, request=call.request
        ):
            return
    fields = {
        **_named(call),
        "outcome": outcome,
        "channel": _channel(call),
        "seconds": _seconds(call),
        "stages": _stages(call),
        **_ended_by(call),
    }
    if granted:
        state.call_throttle.write("call", **fields)
    else:
        state.audit_throttle.write_uncounted("call", of=of, throttled=throttled, **fields)


def ended(state: State, call: Call) -> None:
    """Records the end, once, by what is known of the two sides: how it ended is the service's to
    say, and without it the caller's."""
    if call.end_is_told:
        return
    call.end_is_told = True
    service, caller = call.ends.get("service"), call.ends.get("caller")
    end = service or caller
    assert end is not None
    is_counted = not _is_dom0s_users(state, call) and _counted(
        state, "call_ended", call, outcome=_with_user(call, _end_in_words(end))
    )
    state.call_throttle.forget(call.request)
    if is_counted:
        return
    state.call_throttle.write(
        "call_ended",
        **_named(call),
        kind=end.kind,
        status=end.status,
        **({"text": end.text} if end.text else {}),
        **_otherwise(end, caller),
        stdin=_most("stdin", service, caller),
        stdout=_most("stdout", service, caller),
        stderr=_most("stderr", service, caller),
        seconds=_seconds(call),
        stages=_stages(call),
        **_ended_by(call),
        **_breach(service, caller),
    )


def ended_untold(state: State, vm: str, end: ServiceEnded, told: RunningCall | None) -> None:
    """Records what the agent of a VM tells of its side of a call that dom0 does not know (any
    more), as it ended while there was no connection. `told` is from a side that was known."""
    named = {} if told is None else {"service": told.service, "argument": told.argument}
    request, throttle = new_request_id(), state.call_throttle
    # Which VM was called is not known here.
    called = Called(named.get("service", ""), named.get("argument", "+"), "")
    is_counted = throttle.counts(
        "call_ended",
        called,
        of=vm,
        throttled=True,
        request=request,
        call_id=end.call,
        has_begun=bool(named),
        outcome=_end_in_words(end),
    )
    throttle.forget(request)
    if is_counted:
        return
    throttle.write(
        "call_ended",
        request=request,
        call=end.call,
        caller=vm,
        **named,
        kind=end.kind,
        status=end.status,
        **({"text": end.text} if end.text else {}),
        stdin=end.stdin,
        stdout=end.stdout,
        stderr=end.stderr,
        seconds=round(end.seconds, 4),
        reason=UNTOLD,
    )


def adopted(state: State, call: Call) -> None:
    """Records that a call of an earlier run of the service goes on."""
    call.began_is_told = True
    if not _counted(state, "call_adopted", call, call_id=call.id, has_begun=True):
        state.call_throttle.write("call_adopted", **_named(call), reason=ADOPTED)


def _counted(
    state: State,
    event: str,
    call: Call,
    *,
    call_id: str | None = None,
    has_begun: bool = False,
    outcome: str | None = None,
) -> bool:
    """Whether the line of a granted call is counted instead of written, see `counts`."""
    assert call.target is not None
    return state.call_throttle.counts(
        event,
        Called(call.subject.service, call.subject.argument, call.target),
        of=call.caller.audited,
        throttled=call.caller.kind.throttled,
        request=call.request,
        call_id=call_id,
        has_begun=has_begun,
        outcome=outcome,
    )


def _is_dom0s_users(state: State, call: Call) -> bool:
    """Whether dom0's user has had it ended, and has a line for that: root always, and a user of the
    desktop as for anything else that takes away, or its programs would fill the log with calls that
    they end."""
    by = call.ended_by
    return by is not None and state.audit_throttle.pays(by, throttled=by != DOM0_NAME)


def _with_user(call: Call, outcome: str) -> str:
    return outcome if call.ended_by is None else f"{outcome}, {call.ended_by}"


def _end_in_words(end: ServiceEnded) -> str:
    return f"{end.kind} {end.status}" if end.kind in ("exited", "signalled") else end.kind


def _seconds(call: Call) -> float:
    """Since its beginning."""
    return round(trio.current_time() - call.began, 4)


def _stages(call: Call) -> dict[str, float]:
    return {name: round(seconds, 4) for name, seconds in call.stages.items()}


def _named(call: Call) -> dict[str, Any]:
    source, target = call.source.name, call.target
    return {
        "request": call.request,
        "call": call.id,
        "caller": call.caller.audited,
        "source": source,
        "target": target,
        **({"requested": call.requested} if call.requested != target else {}),
        "service": call.subject.service,
        "argument": call.subject.argument,
        **({"user": call.user} if call.user else {}),
    }


def _ended_by(call: Call) -> dict[str, str]:
    """The one of dom0 who has ended it."""
    return {"by": call.ended_by} if call.ended_by else {}


def _channel(call: Call) -> str | None:
    if call.channel is None:
        return None
    return "new" if call.had_new_channel else "idle"


def _otherwise(end: ServiceEnded, caller: ServiceEnded | None) -> dict[str, Any]:
    """The caller's word, where it differs."""
    if caller is None or _how(caller) == _how(end):
        return {}
    return {"caller_kind": caller.kind, "caller_status": caller.status}


def _how(end: ServiceEnded) -> tuple[str, int]:
    """How it ended; other kinds than these have no status."""
    return end.kind, end.status if end.kind in ("exited", "signalled") else 0


def _most(stream: str, *ends: ServiceEnded | None) -> int:
    """The bytes of a stream, of which one side may have seen fewer, or may not tell any more."""
    return max((getattr(end, stream) for end in ends if end is not None), default=0)


def _breach(service: ServiceEnded | None, caller: ServiceEnded | None) -> dict[str, str]:
    """Which side says that the other one broke the protocol of their channel."""
    sides = {"service": service, "caller": caller}
    said = [f"{side}: {end.reason}" for side, end in sides.items() if end and end.breach]
    return {"breach": "; ".join(said)} if said else {}
