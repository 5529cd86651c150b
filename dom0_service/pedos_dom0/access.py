"""Who may do what: the one place that asks the policy, and writes down what it said.

A caller is dom0's user (through the local socket) or a VM (through its control channel, which is
what says which VM it is). What a caller is told when it is refused differs: dom0's user learns the
rule, a VM only that it was denied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
from pedos_protocol.errors import CallError

from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import PublicError, QuotaError
from pedos_dom0.policy import evaluate

if TYPE_CHECKING:
    from pedos_dom0.policy.evaluate import Decision
    from pedos_dom0.registry import DeviceKey
    from pedos_dom0.state import State

Verb = Literal["list", "attach", "detach", "assign"]


@attrs.frozen
class Caller:
    """Who asks. `name` is a VM's name as its domain says, or dom0."""

    kind: Literal["local", "vm"]
    name: str

    @property
    def is_dom0(self) -> bool:
        return self.kind == "local"


DOM0_USER = Caller(kind="local", name=DOM0_NAME)


class Access:
    """Asks the policy that is in force at this moment."""

    def __init__(self, state: State) -> None:
        self._state = state

    def decide(
        self, source: str, verb: str, key: DeviceKey, vm: str, *, trace: bool = False
    ) -> Decision:
        """The decision alone: nothing is raised and nothing is written down.

        The device's identity is what its source VM reported, never what the request says; it is
        empty for a device that is gone, which can still be detached.
        """
        device = self._state.registry.get(key)
        identity = "" if device is None else device.identity
        request = evaluate.Request(
            service=f"device.{verb}.{key.device_class}",
            argument=f"+{key.backend}:{key.device}:{identity}",
            source=source,
            target=vm,
        )
        return evaluate.evaluate(request, self._state.policy.snapshot, trace=trace)

    def require(
        self, caller: Caller, verb: Verb, key: DeviceKey, vm: str, request: str
    ) -> Decision:
        """The decision if it is allow; audited either way. Raises CallError(denied)."""
        decision = self.decide(caller.name, verb, key, vm)
        allowed = decision.verdict == "allow"
        self._state.noise.write(
            "decision",
            of=caller.name,
            noise=not caller.is_dom0,
            request=request,
            caller=caller.name,
            verb=verb,
            device_class=key.device_class,
            device=str(key),
            vm=vm,
            verdict=decision.verdict,
            rule=None if decision.rule is None else decision.rule.where,
            # Nobody can be asked yet, so `ask` is no.
            reason="ask: no prompter" if decision.verdict == "ask" else None,
        )
        if not allowed:
            raise self.denied(key, vm, decision)
        return decision

    def denied(self, key: DeviceKey, vm: str, decision: Decision | None = None) -> CallError:
        """The refusal as dom0's user sees it; the dispatcher takes everything out for a VM."""
        device = self._state.registry.get(key)
        named = str(key)
        if device is not None and (device.identity or device.description):
            quoted = f'"{device.description}"' if device.description else None
            named += f" ({' '.join(filter(None, (device.identity, quoted)))})"
        data: dict[str, object] = {"device": str(key), "vm": vm, "rule": None, "text": None}
        if decision is not None and decision.rule is not None:
            data["rule"] = decision.rule.where
            data["text"] = decision.rule.text
        if decision is not None and decision.verdict == "ask":
            data["hint"] = "ask: no prompter; a rule that says allow is needed"
        return CallError("denied", f"{named} -> {vm}", data)

    def hidden(self, key: DeviceKey, vm: str) -> CallError:
        """What a VM gets instead of the truth about what it may not see: the same as a denial."""
        return CallError("denied", f"{key} -> {vm}", {"device": str(key), "vm": vm})


# What a VM is told instead of a sentence that could name other VMs.
_FOR_VMS = {
    "busy": "the device is in use",
    "failed": "it could not be done; dom0's audit log has the reason under this request",
    "timeout": "it took too long",
    "unavailable": "the service cannot do it now",
}


def as_told(caller: Caller, error: CallError, request: str) -> CallError:
    """`error` as this caller may see it: whole for dom0's user, nearly nothing for a VM.

    The one place where answers to VMs are emptied. `usage` and `not_found` keep their sentence:
    they are raised only about what the VM said, did or owns itself. So does the VM's own quota;
    that of another VM is a failure like any other, as it tells how much that one has or lends.
    """
    if caller.is_dom0:
        return CallError(error.code, error.message, {**error.data, "request": request})
    code, message = error.code, error.message
    if code == "quota" and not (isinstance(error, QuotaError) and error.owner == caller.name):
        code = "failed"
    if code == "denied":
        message = f"{error.data.get('device')} -> {error.data.get('vm')}"
    elif not isinstance(error, PublicError):
        message = _FOR_VMS.get(code, message)
    return CallError(code, message, {"request": request})
