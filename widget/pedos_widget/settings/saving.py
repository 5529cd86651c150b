"""Reads the settings of a VM from the service, tries changes, and saves them: trio, and no Qt.

Each change ends in one state of its row, whatever happens to the service meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_cli.answers import landed, take, take_maps
from pedos_cli.assign_words import WHEN, now_lines
from pedos_cli.client import Unreachable
from pedos_cli.devices import TIMEOUT_S, assignment_pages, device_pages
from pedos_cli.output import show
from pedos_cli.timeouts import ASSIGN_S, UNASSIGN_S
from pedos_protocol.device_classes import CLASSES, class_named
from pedos_protocol.errors import CallError, ProtocolError

from pedos_widget.calls import everything, not_reached, not_understood, refusal
from pedos_widget.i18n import _
from pedos_widget.settings.model import Loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pedos_widget.calls import Calls
    from pedos_widget.settings.model import Candidate, Row, Settings, Step
    from pedos_widget.settings.wish import Wish


async def load(caller: Calls, vm: str) -> Loaded:
    """What the service has of a VM. A class that this service does not have is told in words and is
    no failure. Raises Unreachable, CallError or ProtocolError."""
    answer = await caller.call("vm.list", {}, timeout_s=TIMEOUT_S)
    states = {take(each, "name", str): each.get("state") for each in take_maps(answer, "vms")}
    assigned: dict[str, list[dict[str, object]]] = {}
    devices: dict[str, list[dict[str, object]]] = {}
    troubles = []
    for each in CLASSES:
        listing = device_pages(each.name)
        try:
            assigned[each.name], _answer = await everything(
                caller, assignment_pages(each.name, [vm]), TIMEOUT_S
            )
        except CallError as error:
            if error.code == "not_found":  # no such VM, and nothing is assigned to one that was
                assigned[each.name] = []
            else:
                troubles.append(f"{each.many}: {refusal(error)}")
        try:
            devices[each.name], _answer = await everything(caller, listing, TIMEOUT_S)
        except CallError as error:
            troubles.append(f"{each.many}: {refusal(error)}")
    runs = states[vm] != "Halted" if vm in states else None
    return Loaded(runs, assigned, devices, tuple(dict.fromkeys(troubles)))


async def lasting_identity(caller: Calls, candidate: Candidate) -> str:
    """The part of a device's identity by which an assignment recognises it, "" if there is none.
    Raises Unreachable, CallError or ProtocolError."""
    params = {
        "device_class": candidate.device_class,
        "backend": candidate.backend,
        "device": candidate.device,
    }
    answer = await caller.call("device.info", params, timeout_s=TIMEOUT_S)
    if take(take(answer, "device", dict), "identity", str) != candidate.identity:
        what = _("{name} is another device by now.").format(name=candidate.name)
        raise CallError("not_found", what)
    return take(answer, "lasting", str)


async def try_out(caller: Calls, settings: Settings, row: Row) -> None:
    """Find out what saving a row would come to. Raises Unreachable."""
    wish = row.wanted
    if wish is None:
        return
    try:
        params = wish.params(settings.vm, dry_run=True)
        answer = await caller.call("device.assign", params, timeout_s=ASSIGN_S)
        vm, instead = landed(answer, settings.vm)
        if vm != settings.vm:
            lines = [_assigned_elsewhere(vm, instead)]
        else:
            lines = list(_lines(wish, _without(answer, row.stored, settings.vm), dry_run=True))
        settings.tried(row.key, wish, lines, wish.as_answered(answer))
    except CallError as error:
        settings.tried(row.key, wish, [refusal(error)])
    except ProtocolError as error:
        settings.tried(row.key, wish, [not_understood(error)])


async def save(caller: Calls, settings: Settings, changed: Callable[[], None]) -> None:
    """Save what is to be saved now, one row after the other; `changed` is called whenever a row has
    another state. A row that cannot be saved keeps no other from it, but if the service is gone,
    the rest stays as it is edited."""
    for before in settings.to_save():
        row = settings.row(before.key)
        if row is None or row.wanted != before.wanted or row.stored != before.stored:
            continue  # the service has something else by now: the person is to see that first
        for step in settings.steps(row):
            settings.begin(step)
            changed()
            is_done, is_reached = await _make(caller, settings, step)
            changed()
            if not is_reached:
                return
            if not is_done:
                break


async def _make(caller: Calls, settings: Settings, step: Step) -> tuple[bool, bool]:
    """Whether a step is done, and whether there is somebody to ask further."""
    try:
        if step.verb == "assign":
            return await _assign(caller, settings, step), True
        await _unassign(caller, settings, step)
    except Unreachable as error:
        settings.failed(step, not_reached(error), is_known=not error.lost)
        return False, False
    except CallError as error:
        # Without an answer in time nobody knows whether it is done.
        settings.failed(step, refusal(error), is_known=error.code != "timeout")
        return False, True
    except ProtocolError as error:
        settings.failed(step, not_understood(error), is_known=False)
        return False, True
    except BaseException:  # cancelled: the program ends
        settings.failed(step, _("Nobody waited for the answer."), is_known=False)
        raise
    return True, True


async def _assign(caller: Calls, settings: Settings, step: Step) -> bool:
    params = step.wish.params(settings.vm, dry_run=False)
    answer = await caller.call("device.assign", params, timeout_s=ASSIGN_S)
    vm, instead = landed(answer, settings.vm)
    if vm != settings.vm:
        settings.failed(step, _assigned_elsewhere(vm, instead))
        return False
    row = settings.row(step.key)
    its = _without(answer, None if row is None else row.stored, settings.vm)
    wish, lines = step.wish.as_answered(answer), list(_lines(step.wish, its, dry_run=False))
    settings.done(step, wish, lines)
    return True


async def _unassign(caller: Calls, settings: Settings, step: Step) -> None:
    try:
        params = step.wish.unassign_params(settings.vm)
        answer = await caller.call("device.unassign", params, timeout_s=UNASSIGN_S)
    except CallError as error:
        if error.code != "not_found":
            raise
        settings.done(step)  # there is none any more, which is what was wanted
        return
    for result in take_maps(answer, "results"):
        if result.get("unassigned") is not True:
            raise ProtocolError("it says neither that it is unassigned nor why not")
    settings.done(step)


def _lines(wish: Wish, answer: Mapping[str, object], *, dry_run: bool) -> list[str]:
    """What an assignment means, and what it comes to now."""
    vm, described = show(answer.get("vm")), class_named(wish.device_class)
    lines = [WHEN[wish.mode].format(vm=vm)] if wish.mode in WHEN else []
    if answer.get("now") is not None:
        is_live = described is None or described.live
        lines += now_lines(answer, wish.backend, mode=wish.mode, live=is_live, dry_run=dry_run)
    return lines


def _without(answer: Mapping[str, object], stored: Wish | None, vm: str) -> Mapping[str, object]:
    """The answer without the conflict with the assignment that this one takes the place of."""
    now = answer.get("now")
    if stored is None or not isinstance(now, dict):
        return answer
    its = (vm, stored.device, stored.identity)
    others = [
        each
        for each in take_maps(now, "conflicts")
        if (each.get("vm"), each.get("device"), each.get("identity")) != its
    ]
    return {**answer, "now": {**now, "conflicts": others}}


def _assigned_elsewhere(vm: str | None, instead: str) -> str:
    return f"assigned to {vm}{instead}" if vm is not None else f"assigned to {instead}"
