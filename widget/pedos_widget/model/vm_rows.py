"""The VMs of one device: what choosing each of them would do, or why nothing.

Which VMs run and which of them have the device is what the last change told. What policy and the
service say of the others is the answer to a question, which may be some milliseconds older: where
the two contradict each other, nothing can be chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.device_classes import class_named
from pedos_protocol.names import natural_key

from ..i18n import _, ngettext
from .device_rows import BETWEEN, hearing, in_row, working_phrase
from .view import Action, VmRow
from .work import key_of, why_not

if TYPE_CHECKING:
    from pedos_protocol.messages import Listed, Target

    from .looks import Look
    from .picture import Picture
    from .view import DeviceRef
    from .work import Work

DOM0 = "dom0"
HALTED = "Halted"


def vm_rows(
    ref: DeviceRef,
    picture: Picture,
    look: Look,
    *,
    work: Work | None,
    again: str | None,
    is_current: bool,
) -> tuple[tuple[VmRow, ...], str]:
    """The rows in natural order, and the note below them. `again` is the VM that had the device
    last: if it can have it now, the first row says so."""
    device = picture.devices.get(key_of(ref))
    if device is None or why_not(ref, picture) is not None:
        return (), why_not(ref, picture) or ""
    targets = {} if look.told is None else {each.vm: each for each in look.told.targets}
    rows = []
    for vm in sorted(_shown(device, picture), key=natural_key):
        row = _row(vm, device, picture, look, targets.get(vm))
        if work is not None:
            row = _while_working(row, work)
        elif not is_current:
            row = _greyed(row)
        rows.append(row)
    first = [_again(row) for row in rows if row.vm == again and row.action is Action.ATTACH]
    return (*[row for row in first if row.enabled], *rows), _note(look, rows)


def _shown(device: Listed, picture: Picture) -> set[str]:
    """VMs that run, less dom0 and the source; that have the device; that start with it."""
    running = {name for name, vm in picture.vms.items() if vm.state != HALTED}
    running -= {DOM0, device.backend}
    assigned = {each.vm for each in device.assignments} - set(device.orphans)
    return running | {each.vm for each in device.attachments} | (assigned & picture.vms.keys())


def _row(vm: str, device: Listed, picture: Picture, look: Look, target: Target | None) -> VmRow:
    used = next((each for each in device.attachments if each.vm == vm), None)
    if used is not None:
        text = BETWEEN.join([vm, _("attached"), *hearing(used)])
        detail = _("Choose it to detach the device from {vm}.").format(vm=vm)
        return VmRow(vm, Action.EJECT, text, enabled=True, bold=True, detail=detail)
    if (reason := _why_never(vm, device, picture)) is not None:
        return _no(vm, reason)
    if target is not None:
        return _decided(vm, target)
    if look.may_try:
        return VmRow(vm, Action.ATTACH, vm, enabled=True, detail=look.why)
    return _no(vm, look.why or _("nothing is known of it yet"))


def _why_never(vm: str, device: Listed, picture: Picture) -> str | None:
    """What stands against it whatever policy says."""
    known = picture.vms.get(vm)
    if known is None or known.state == HALTED:
        return _when_it_starts(vm, device)
    others = [each.vm for each in device.attachments]
    described = class_named(device.device_class)
    if others and not (described is not None and described.shared):
        return _("{vm} has it; detach it there first").format(vm=others[0])
    return None


def _decided(vm: str, target: Target) -> VmRow:
    if target.verdict == "deny":
        return _no(vm, target.reason)
    phrases = [vm]
    if target.verdict == "ask":
        phrases.append(_("you are asked first"))
    if target.target is not None:
        phrases.append(_("policy sends it to {vm}").format(vm=target.target))
    if target.read_only:
        phrases.append(_("read-only"))
    return VmRow(
        vm,
        Action.ATTACH,
        BETWEEN.join(phrases),
        enabled=True,
        detail=target.reason,
        is_ask=target.verdict == "ask",
    )


def _when_it_starts(vm: str, device: Listed) -> str:
    mode = next((each.mode for each in device.assignments if each.vm == vm), None)
    if mode == "required":
        return _("not running; starts with it")
    if mode == "ask":
        return _("not running; you are asked when it starts")
    return _("not running; gets it when it starts")


def _no(vm: str, reason: str) -> VmRow:
    text = BETWEEN.join([vm, in_row(reason)])
    return VmRow(vm, Action.NONE, text, enabled=False, detail=reason)


def _greyed(row: VmRow) -> VmRow:
    return VmRow(row.vm, row.action, row.text, enabled=False, bold=row.bold, detail=row.detail)


def _while_working(row: VmRow, work: Work) -> VmRow:
    """One request at a time: the VM that it is for says so, and no other can be chosen."""
    text = BETWEEN.join([row.vm, working_phrase(work)]) if row.vm == work.vm else row.text
    return VmRow(row.vm, Action.NONE, text, enabled=False, bold=row.bold, detail=row.detail)


def _again(row: VmRow) -> VmRow:
    text = _("Attach to {vm} again").format(vm=row.vm)
    if row.is_ask:
        text = BETWEEN.join([text, _("you are asked first")])
    return VmRow(
        row.vm,
        row.action,
        text,
        enabled=row.enabled,
        detail=row.detail,
        is_ask=row.is_ask,
        is_again=True,
    )


def _note(look: Look, rows: list[VmRow]) -> str:
    if look.told is None:
        return look.why
    if look.told.unfit:
        return look.told.unfit[0]
    if more := look.told.left_out:
        return ngettext(
            "{count} more VM is not listed.", "{count} more VMs are not listed.", more
        ).format(count=more)
    return "" if rows else _("No other VM runs.")
