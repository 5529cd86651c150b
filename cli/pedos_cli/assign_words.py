"""What an assignment means and has come to, in words: for commands and windows alike.

These functions read answers of the service, and neither ask it nor write anything.
"""

from __future__ import annotations

from pedos_cli.answers import left_out, take, take_maps
from pedos_cli.devices import assignment_name
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Answer = Mapping[str, object]

WHEN = {
    "required": "{vm} does not start without it",
    "auto-attach": "it is attached when {vm} starts, and when it appears while {vm} runs",
    "ask": "dom0's user is asked when {vm} starts, and when it appears while {vm} runs",
}
"""What each mode means."""

CONFLICTS = {
    "more": "is more specific, and counts",
    "equal": "is as specific, so that neither gets it by itself",
    "less": "is less specific, and does not count",
}


def now_lines(
    answer: Answer, backend: str, *, mode: str | None, live: bool, dry_run: bool
) -> Iterator[str]:
    """Yield what would happen if the VM were to get the device now, of an answer to
    `device.assign`: what is there first, and then everything that is in the way.

    `mode` is the one that is asked for, `live` is whether the class can be given to a VM that runs.
    """
    now = take(answer, "now", dict)
    if now.get("absent") is not None:
        yield show(now["absent"])
    matches = take(now, "matches", list)
    names = [f"{backend}:{show(each)}" for each in matches]
    if more := left_out(now, "matches"):
        names.append(f"{more} more")
    vm = show(answer.get("vm"))
    obstacles = list(_obstacles(now, vm, backend))
    others = take_maps(now, "conflicts")
    is_clear = not obstacles and all(each.get("specific") == "less" for each in others)
    if names and not is_clear:
        yield f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} present"
    elif names:
        then = _then(now, vm, mode=mode, live=live, word="would" if dry_run else "will")
        yield f"{names[0]} is present, and {then}"
    yield from obstacles
    for each in others:
        yield _conflict(each, backend)
    if more := left_out(now, "conflicts"):
        yield f"{more} more assignments are about the same devices"


def _then(now: Answer, vm: str, *, mode: str | None, live: bool, word: str) -> str:
    """Return what would become of a device that nothing keeps from the VM."""
    if now.get("held_by") is not None:
        return f"is attached to {vm} already"
    is_live = now.get("runs") is True and live
    when = "at once" if is_live else f"when {vm} starts"
    if now.get("verdict") == "ask":
        return f"dom0's user {word} be asked {when}, as {_rule(now)} wants it"
    if mode == "ask":
        return f"dom0's user {word} be asked {when}"
    return f"{word} be attached {f'to {vm} at once' if is_live else when}"


def _obstacles(now: Answer, vm: str, backend: str) -> Iterator[str]:
    if now.get("ambiguous") is not None:
        yield show(now["ambiguous"])
    if now.get("verdict") == "deny":
        yield f"denied by policy ({_rule(now)})"
    holder, held = now.get("held_by"), now.get("held")
    if holder is not None and held not in take(now, "matches", list):
        yield f"{show(holder)} has {backend}:{show(held)}, which shares data with it"
    elif holder not in (None, vm):
        yield f"{show(holder)} has it"
    for key in ("unfit", "name_taken"):
        if now.get(key) is not None:
            yield show(now[key])


def _rule(now: Answer) -> str:
    return "no rule allows it" if now.get("rule") is None else show(now["rule"])


def _conflict(other: Answer, backend: str) -> str:
    what, to, mode = show(assignment_name(other, backend)), show(other.get("vm")), other.get("mode")
    how = CONFLICTS.get(str(other.get("specific")), "conflicts")
    return f"the assignment of {what} to {to} ({show(mode)}) {how}"


def became(assignment: Answer) -> list[str]:
    """Return what has become of an assignment of `device.assignments`, one text for each device
    that it is to."""
    if assignment.get("orphaned"):
        return ["the VM was removed"]
    vm, port = take(assignment, "vm", str), assignment.get("device")
    holders = {
        take(each, "device", str): take(each, "vm", str)
        for each in take_maps(assignment, "holders")
    }
    texts = []
    for device in take(assignment, "matches", list):
        holder = holders.get(device)
        has = "present" if holder is None else f"attached to {holder}"
        has = "attached" if holder == vm else has
        texts.append(has if device == port else f"{has} ({device})")
    if more := left_out(assignment, "matches"):
        texts.append(f"{more} more present")
    if (conflict := assignment.get("conflict")) is not None:
        texts.append(str(conflict))
    return texts or ["not present"]


def is_to(assignment: Answer, device: Answer) -> bool:
    """Say whether an assignment is to a listed device, as far as names tell."""
    port, identity = assignment.get("device"), assignment.get("identity")
    return (
        assignment.get("backend") == device.get("backend")
        and port in (None, device.get("device"))
        and identity in ("", device.get("identity"))
    )


def stays(device: str, vm: str) -> str:
    """Return that a VM keeps what it has when the assignment to it ends."""
    return f"{device} stays attached to {vm} until it is detached"
