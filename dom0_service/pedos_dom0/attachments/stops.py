"""The requests to the two agents when an attachment ends, and the meaning of their answers.

An agent that confirms is believed about its own side only. An agent that does not confirm is
disconnected, which cuts its side off. Exceptions are a target that may keep what it uses and says
so or says nothing, and an agent with other attachments that would end with its connection. What
such a target does not release is dead when the source has ended its side; while such a source does
not end its side, no other VM gets the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text
from pedos_protocol.words import request_to

from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.attachments.wire import stop_params
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import Container

    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.leases import Lease

NOT_CONNECTED = "it is not connected"


async def check_target(state: State, lease: Lease) -> None:
    """CallError(busy) if the target would refuse to release it now. Nothing changes; a target that
    does not answer is asked again when it has to release it, and only then counts."""
    link = state.agents.at(lease.vm, lease.vm_domid)
    said = NOT_CONNECTED
    if link is not None:
        try:
            await link.call("import.check", stop_params(lease), timeout=STOP_TIMEOUT)
            return
        except CallError as error:
            said = harmless_text(error.message)
            if error.code == "busy":
                raise _in_use(lease, said) from error
    if _may_use(state, lease, link):
        raise _silent(lease, said)


async def stop_target(state: State, lease: Lease, *, may_refuse: bool) -> None:
    """Makes the target release it, or ensures that it is cut off; CallError(busy) if the target may
    refuse and uses the device, or does not deny that."""
    is_carried = state.is_by_hypervisor(lease)
    link = state.agents.at(lease.vm, lease.vm_domid)
    said = NOT_CONNECTED
    if link is not None:
        params = {**stop_params(lease), "may_refuse": may_refuse}
        try:
            await link.call("import.stop", params, timeout=STOP_TIMEOUT)
            return
        except CallError as error:
            said = harmless_text(error.message)
            uses = error.code == "busy"
        if uses and may_refuse:
            raise _in_use(lease, said)
        if uses and is_carried:
            return  # the hypervisor takes it away all the same
    if may_refuse and _may_use(state, lease, link):
        raise _silent(lease, said)
    if link is not None and link.connected and not _has_more(state, link.name, {lease.attachment}):
        # The end of the connection is as good as a confirmation. An error answer is not: the agent
        # may answer anything, also "unavailable".
        link.disconnect(f"it did not confirm {request_to('import.stop')}: {said}")


async def stop_source(state: State, lease: Lease, released: Container[str]) -> bool:
    """Ends the export, or ensures that the source is cut off. False if it may still export it,
    because other attachments would end with its connection than those that their targets have
    released."""
    link = state.agents.at(lease.key.backend, lease.backend_domid)
    if link is None:
        return True
    try:
        params = {"attachment": lease.attachment}
        await link.call("export.stop", params, timeout=STOP_TIMEOUT)
    except CallError as error:
        if not link.connected:
            return True
        # What the hypervisor carries does not need the agent.
        if not state.is_by_hypervisor(lease) and _has_more(state, link.name, released):
            return False
        link.disconnect(f"it did not confirm {request_to('export.stop')}: {error.message}")
    return True


def _may_use(state: State, lease: Lease, link: AgentLink | None) -> bool:
    """Whether a target that does not answer may use it (ways.py)."""
    if not state.runs(lease.vm, lease.vm_domid):
        return False
    if state.is_by_hypervisor(lease):
        return True
    has_ended = link is not None and not link.connected  # its attachments ended with it
    return lease.is_made and not has_ended


def _has_more(state: State, vm: str, besides: Container[str]) -> bool:
    """Whether a VM has or lends anything else, which would end with its agent's connection."""
    leases = state.leases
    return any(
        other.attachment not in besides and other.is_made
        for other in (*leases.of_vm(vm), *leases.from_backend(vm))
    )


def _in_use(lease: Lease, said: str) -> CallError:
    return failure(
        "busy",
        f"it stays attached to {lease.vm}: {said}",
        hint=f"unmount it in {lease.vm} and try again",
    )


def _silent(lease: Lease, said: str) -> CallError:
    """A paused VM, or one whose agent hangs or has ended, may have it mounted."""
    return failure(
        "busy",
        f"it stays attached to {lease.vm}, whose agent does not say whether it is used "
        f"there ({said})",
        hint=f"look after {lease.vm} and try again; detach --force takes it all the same",
    )
