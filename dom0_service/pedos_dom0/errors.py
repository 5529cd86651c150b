"""The service's refusals: one function per sentence, so that the texts stand together.

Every error carries what the user can do next as `hint`, if there is anything. The dispatcher adds
the request id, and removes everything but that id from an answer to a VM.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pedos_protocol.errors import CallError

from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.tables.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pedos_protocol.messages import Device, Missing

    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey


class PublicError(CallError):
    """An error whose sentence a VM may read: it tells nothing about other VMs."""


class QuotaError(CallError):
    """A bound is reached. `owner` is the VM (or dom0) whose quota it is: no other VM is told."""

    def __init__(self, owner: str, message: str, *, hint: str | None = None) -> None:
        super().__init__("quota", message, {} if hint is None else {"hint": hint})
        self.owner = owner


class ToldError(CallError):
    """An error of which a VM is told another sentence, `told`, that names no other VM."""

    def __init__(self, code: str, message: str, told: str) -> None:
        super().__init__(code, message, {})
        self.told = told


class DeniedError(CallError):
    """Policy, or dom0's user, does not allow it. `about` is the request, in the requester's words:
    all that a VM learns."""

    def __init__(self, about: str, message: str, data: dict[str, object]) -> None:
        super().__init__("denied", message, data)
        self.about = about


class HiddenError(DeniedError):
    """A denial that hides `truth` from a VM; dom0's audit log has both."""

    def __init__(self, about: str, data: dict[str, object], truth: CallError) -> None:
        super().__init__(about, about, data)
        self.truth = truth


def hidden_truth(error: CallError) -> str | None:
    """What a VM was not told, for the audit log; None if it was told everything."""
    return error.truth.message if isinstance(error, HiddenError) else None


def failure(code: str, message: str, *, hint: str | None = None) -> CallError:
    """An error answer; `hint` is the next command to try, without a prompt before it."""
    return CallError(code, message, {} if hint is None else {"hint": hint})


class NotStoredError(CallError):
    """The store could not write something down first, so it was not done. That may be over soon: it
    says nothing of what was asked for."""

    def __init__(self, error: StoreError) -> None:
        super().__init__("failed", str(error))


@contextmanager
def store_failures() -> Iterator[None]:
    """A write that the store refuses fails the operation like any other error: with a sentence, for
    the audit log too."""
    try:
        yield
    except StoreError as error:
        raise NotStoredError(error) from error


def no_vm(name: str) -> CallError:
    return failure("not_found", f"no VM named '{name}'", hint="qvm-ls")


def backend_halted(backend: str) -> CallError:
    return failure(
        "not_found",
        f"{backend} is halted, so its devices are not there",
        hint=f"qvm-start {backend}",
    )


def agent_missing(name: str, code: str) -> CallError:
    """`code` is not_found for a source (its devices are unknown) and failed for a target."""
    return failure(
        code,
        f"{name} is running, but its agent is not connected",
        hint="try again in a moment; if it stays so, the service's log says why",
    )


def no_device(key: DeviceKey, missing: Missing | None) -> CallError:
    """`missing` is the number of devices of that class which the VM has and does not report."""
    hint = f"qvm-device {key.device_class} list {key.backend}"
    if missing is None:
        message = f"{key.backend} has no {key.device_class} device named '{key.device}'"
        return failure("not_found", message, hint=hint)
    if missing.count is None:
        why = f"it does not know all that it has: {missing.reason}"
    else:
        why = f"it has {missing.count} more than it reports: {missing.reason}"
    message = f"{key.backend} reports no {key.device_class} device named '{key.device}', but {why}"
    return failure("not_found", message, hint=hint)


def identified(identity: str) -> str:
    """What a device is, in a sentence."""
    return f"'{identity}'" if identity else "a device without an identity"


def another_device(key: DeviceKey, expected: str, identity: str) -> CallError:
    """The device of that name, which has this identity, is not the one that was chosen; for a VM
    it does not exist."""
    return failure(
        "not_found",
        f"{key} is {identified(identity)} by now, and not '{expected}'",
        hint=f"qvm-device {key.device_class} list {key.backend}",
    )


def usage(message: str) -> CallError:
    """The request contradicts itself, whatever there is: a VM may read that too."""
    return PublicError("usage", message)


def no_lasting_identity(key: DeviceKey) -> CallError:
    return failure(
        "failed",
        f"{key} has no identity that lasts, so another device in its place is not told apart",
        hint="assign it by its port (--port): whatever is there is given to the VM then",
    )


def not_there_to_identify(key: DeviceKey) -> CallError:
    """Only the port of a device that is absent can be assigned without its identity."""
    return failure(
        "not_found",
        f"{key} is not there, so its identity is not known",
        hint=f"name it with its identity, {key}:IDENTITY, or assign whatever is there (--port)",
    )


def not_assigned(name: str, device_class: str, vm: str) -> CallError:
    return failure(
        "not_found",
        f"{name} is not assigned to {vm}",
        hint=f"qvm-device {device_class} list --assignments {vm}",
    )


def unsupported(reason: str) -> CallError:
    return PublicError("failed", reason)


def never_given(key: DeviceKey, why: str) -> CallError:
    """Its class has no way to give such a device to any VM (DeviceClass.why_never)."""
    return unsupported(f"{key} cannot be given to a VM: {why}")


def target_halted(vm: str) -> CallError:
    return failure("failed", f"{vm} is halted", hint=f"qvm-start {vm}, or attach with --persistent")


def only_at_start(key: DeviceKey, vm: str) -> CallError:
    """The hypervisor cannot give this VM a device of the class while it runs."""
    return failure(
        "failed",
        f"{key} could not be attached to {vm}: {vm} was started without PCI devices, so Xen can "
        "give it one only when it starts",
        hint=f"qvm-device {key.device_class} attach --persistent {vm} {key}, which takes effect at "
        f"the next start of {vm}",
    )


def being_started(vm: str) -> CallError:
    return failure(
        "failed",
        f"{vm} is being started, with what was assigned to it before",
        hint="try again when it runs",
    )


def target_is_dom0() -> CallError:
    return failure(
        "usage", "dom0 cannot be given a device: it mediates, and never touches a device's data"
    )


def no_such_target(vm: str) -> CallError:
    """A rule names a disposable, which is made for a call and has no device before it runs."""
    return failure("failed", f"policy sends it to {vm}, which cannot be given a device")


def sent_elsewhere(key: DeviceKey, vm: str, target: str) -> CallError:
    """A rule redirects the device from `vm`, which alone is to have it, to another VM."""
    why = f"policy sends {key} to {target}, and not to {vm}"
    return CallError("denied", why, {"reason": why})


def target_is_backend(vm: str) -> CallError:
    return failure("usage", f"{vm} has this device already: a VM's own device cannot be lent to it")


def taken(key: DeviceKey, holder: Lease) -> CallError:
    """The device, or one that shares data with it (its disk, a partition), is leased."""
    stage = {
        "pending": "is being attached to",
        "detaching": "is being detached from",
    }.get(holder.state, "is attached to")
    text = f"{holder.key} {stage} {holder.vm}"
    if holder.key != key:
        text = f"{key} shares data with {holder.key}, which {stage} {holder.vm}"
    hint = f"qvm-device {holder.key.device_class} detach {holder.vm} {holder.key}"
    return failure("busy", text, hint=hint if holder.state == "attached" else "try again")


def held_by_toolstack(lease: Lease) -> CallError:
    """It should have ended, and the toolstack does not take it away."""
    return failure(
        "failed",
        f"{lease.key} is still attached to {lease.vm}, as the toolstack does not take it away; "
        "that is tried again every minute",
        hint="look at `journalctl -u pedos-dom0`",
    )


def held_by_source(lease: Lease) -> CallError:
    """It should have ended, the target has released it, and the source does not confirm the end."""
    backend = lease.key.backend
    return failure(
        "failed",
        f"{lease.vm} has released {lease.key}, but the agent of {backend} does not say that it "
        "has ended its part; it is asked again every minute",
        hint=f"look after {backend}; qvm-shutdown --force {backend} ends all that it lends",
    )


def not_to_be_had(key: DeviceKey, device: Device) -> CallError | None:
    """Why its source cannot lend it now, if the source says so; None if it can."""
    if device.stale is not None:
        return not_known(key, device)
    if (never := class_of(key.device_class).why_never(key.backend, device)) is not None:
        return never_given(key, never)
    if device.busy is not None:
        is_heard = class_of(key.device_class).description.heard  # what is lacking is no use of it
        is_unfit = "cannot be recorded" if is_heard else "is in use"
        return failure("busy", f"{key} {is_unfit} in {key.backend}: {device.busy}")
    return None


def not_known(key: DeviceKey, device: Device) -> CallError:
    """The service waited for it, and its source still cannot identify it."""
    return failure(
        "busy",
        f"{key.backend} cannot tell what {key} is: {device.stale}",
        hint=f"try again; if it stays so, see whether udev and the agent work in {key.backend}",
    )


def frontend_taken(vm: str, frontend: str, holder: Lease) -> CallError:
    detach = f"qvm-device {holder.key.device_class} detach {vm} {holder.key}"
    return failure(
        "busy",
        f"{frontend} in {vm} is taken by {holder.key}",
        hint=f"leave frontend-dev out, or {detach}",
    )


def neither(key: DeviceKey, vm: str) -> CallError:
    return failure(
        "not_found",
        f"{key} is neither attached nor assigned to {vm}",
        hint=f"qvm-device {key.device_class} list {vm}",
    )


def still_assigned(key: DeviceKey, vm: str, why: str) -> CallError:
    """A detach did only half of its work."""
    return failure(
        "failed",
        f"{key} is detached from {vm}, but still assigned to it: {why}",
        hint=f"qvm-device {key.device_class} detach {vm} {key} once that is repaired",
    )


def not_shut_down(
    vm: str, refusals: Sequence[tuple[Lease, CallError]], freed: Iterable[Lease]
) -> CallError:
    """VMs use what it lends, or has."""
    used = "; ".join(f"{lease.key}: {refused.message}" for lease, refused in refusals)
    has = " or ".join(sorted({"has" if lease.vm == vm else "lends" for lease, _ in refusals}))
    text = f"{vm} was not shut down, as what it {has} is in use: {used}"
    done = ", ".join(f"{lease.key} from {lease.vm}" for lease in freed)
    if done:
        text += f"; detached by now: {done}"
    hints = sorted({str(refused.data.get("hint")) for _, refused in refusals})
    return failure(
        "busy",
        text,
        hint="; ".join([*hints, f"qvm-shutdown --force {vm} takes it all the same"]),
    )


def not_confirmed(lease: Lease, why: str, *, muted: bool) -> CallError:
    """The source was asked to mute or unmute what a VM has, and did not say that it has."""
    key, vm = lease.key, lease.vm
    if not muted:
        message = f"{vm} may still hear nothing of {key}: {key.backend} does not confirm it ({why})"
        return failure("failed", message, hint=f"look after {key.backend}; it is asked again")
    return failure(
        "failed",
        f"{vm} MAY STILL HEAR {key}: {key.backend} does not confirm that it is muted ({why})",
        hint=f"qvm-device {key.device_class} detach {vm} {key}",
    )


def cannot_mute(lease: Lease) -> CallError:
    """The agent of the source speaks an older version of the protocol."""
    return failure(
        "failed",
        f"{lease.vm} is muted, and the agent of {lease.key.backend} is older and cannot mute",
        hint=f"upgrade pedos-agent in {lease.key.backend}, or "
        f"qvm-device {lease.key.device_class} unmute {lease.vm}",
    )


def too_many_muted(device_class: str, most: int) -> CallError:
    return failure(
        "quota",
        f"{most} VMs are muted already, some of which may not exist any more",
        hint=f"qvm-device {device_class} list --json shows them; unmute some",
    )


def shutting_down(vm: str) -> CallError:
    return failure("failed", f"{vm} is being shut down")


# Calls of services


def agent_not_known_yet() -> CallError:
    """Its agent asks before its first report."""
    return PublicError("unavailable", "dom0's service does not know yet what this VM has")


def target_is_full(target: str, most: int, whose: str = "") -> CallError:
    """As many calls run in a VM as may."""
    return ToldError(
        "busy",
        f"{most} calls run in {target}{whose} already, which is the most",
        f"{most} calls run there already, which is the most",
    )


def target_unreachable(vm: str, why: str) -> CallError:
    """Policy lets the call go there."""
    told = "the VM that would serve it cannot be reached; dom0's audit log has the reason"
    return ToldError("unavailable", f"{vm} cannot be reached: {why}", told)


def no_channel(source: str, code: str, why: str) -> CallError:
    """The caller's agent cannot listen: `code` and `why` are its own."""
    if code in ("quota", "busy"):
        return PublicError("busy", f"{source} has no room for another channel: {why}")
    return PublicError("failed", f"{source} could not make a channel: {why}")


def no_vm_to_call(name: str) -> CallError:
    """As `no_vm`: `not_found` would say that a VM has no such service."""
    return failure("failed", f"no VM named '{name}'", hint="qvm-ls")


def too_many_set_up(source: str, target: str | None, most: int, silent: Sequence[str]) -> CallError:
    """Others are before it: channels of the calls of `source`, or of those in `target` alone.
    `silent` are the VMs whose agents do not answer."""
    where = "" if target is None else f" in {target}"
    set_up = f"{most} channels for calls of {source}{where} are being set up"
    who, told = "", ""
    if silent:
        who = f"the agent{'s' * (len(silent) > 1)} of {' and '.join(silent)} did not answer: "
        # Policy may have sent the call to a VM whose name the caller must not know.
        told = "the agent of this VM did not answer: "
        if list(silent) != [source]:
            told = "what it calls did not answer: "
            if target is not None:
                told = "the VM that would serve it did not answer: "
    here = "" if target is None else " to that VM"
    return ToldError(
        "busy",
        f"{who}{set_up}, which is the most at once",
        f"{told}{most} channels for calls{here} are being set up, which is the most at once",
    )


def not_served(target: str, code: str, why: str) -> CallError:
    """The service's agent was asked to start it, and did not: `code` and `why` are its own."""
    if code == "not_found":
        return ToldError("not_found", f"{target} has no such service: {why}", "no such service")
    if code in ("timeout", "unavailable"):
        return target_unreachable(target, why)
    told = "the service could not be started; dom0's audit log has the reason"
    return ToldError("failed", f"{target} could not start the service: {why}", told)


def call_stopped(why: str) -> CallError:
    """It is not to begin any more."""
    return PublicError("failed", why)


def no_disposables(target: str) -> CallError:
    return failure("failed", f"policy sends the call to {target}, and there are no disposables yet")


def another_user(user: str) -> CallError:
    return failure("failed", f"policy has the service run as {user}, and as nobody else")


def no_such_user(user: str) -> CallError:
    return failure("failed", f"policy has the service run as {user!r}, which is no user's name")


def call_goes_on(names: Sequence[str], seconds: float) -> CallError:
    """`names` are of VMs whose agents have been asked to end it."""
    return failure(
        "timeout",
        f"the call may go on: {' and '.join(names)} did not confirm its end in {seconds:.0f} s",
        hint="qvm-calls: it is listed until it is over",
    )


def no_call(call_id: str) -> CallError:
    return failure(
        "not_found",
        f"no such call runs ({call_id}); what its service has left may",
        hint="qvm-calls",
    )
