"""The row of a device: phrases with a sign between them that no device's own text can have.

Each phrase is translated as a whole. A device's description has passed `names.harmless_text`, which
leaves no middle dot and no curved quotation mark in it: it cannot pass for a phrase of ours.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING

from pedos_cli.device_list import size_text
from pedos_protocol.device_classes import class_named
from pedos_protocol.kind_words import in_short
from pedos_protocol.kinds import kinds_in
from pedos_protocol.names import IDENTITY_MAX, natural_key

from ..i18n import _, ngettext
from .families import parent_of
from .view import DeviceRef, DeviceRow
from .work import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pedos_protocol.messages import AttachedTo, Listed

    from .families import Member
    from .picture import Key
    from .view import Icon, VmRow
    from .work import Work

BETWEEN = " · "

REASON_MAX = 60
"""Characters of a reason in a row; a menu would be wider than the screen. `detail` has all."""

TAIL_MIN = 4
"""Characters of an identity that tell devices apart which look the same, if they do."""

VMS_MAX = 3
"""VMs that a row names; the others are counted."""

# The first interface kinds that a person would know the device by.
_ICONS: tuple[tuple[str, Icon], ...] = (
    ("u030101", "keyboard"),
    ("u0e", "camera"),
    ("u06", "camera"),
    ("u03", "keyboard"),
)
_BY_CLASS: Mapping[str, Icon] = {"block": "disk", "usb": "usb", "mic": "mic", "pci": "pci"}


def device_row(
    member: Member,
    device: Listed,
    *,
    relatives: Sequence[str],
    tail: str,
    work: Work | None,
    is_current: bool,
    vms: tuple[VmRow, ...] | None,
    note: str,
) -> DeviceRow:
    """The row. `relatives` are phrases on the devices that are the same hardware, `tail` is what
    tells it from others that look the same. What is not current is shown as it was, and greyed."""
    key = member.key
    ref = DeviceRef(*key, device.identity)
    why = _why_not(device)
    phrases = [size_text(device.size)] if device.size is not None else []
    phrases += [_("read-only")] if device.read_only else []
    phrases += [_("…{tail}").format(tail=tail)] if tail else []
    phrases += relatives
    if member.folded:
        count = member.folded
        phrases.append(
            ngettext(
                "{count} more part is not shown", "{count} more parts are not shown", count
            ).format(count=count)
        )
    phrases += _uses(device)
    if work is not None and not work.is_shown(device):
        phrases.append(working_phrase(work))
    elif why:
        phrases.append(in_row(why))
    text = BETWEEN.join(filter(None, (name_of(key), device.description, *phrases)))
    # Last, so that all that follows is the device's own words: they may sound like a state.
    called = (
        _("it calls itself “{description}”").format(description=device.description)
        if device.description
        else ""
    )
    spoken = ", ".join(filter(None, (name_of(key), *phrases, called)))
    return DeviceRow(
        ref=ref,
        text=text,
        spoken=spoken,
        bold=bool(device.attachments),
        indent=member.indent,
        icon=_icon(device),
        search=f"{text} {device.identity}".casefold(),
        enabled=is_current and not why,
        detail="\n".join([*_details(key, device, why), *relatives, *_uses(device)]),
        vms=vms,
        note=note,
    )


def working_phrase(work: Work) -> str:
    """What is being done with a device."""
    doing = _("attaching to {vm} …") if work.verb == "attach" else _("detaching from {vm} …")
    return doing.format(vm=work.vm)


def in_row(reason: str) -> str:
    """A reason as it fits into a row."""
    return reason if len(reason) <= REASON_MAX else f"{reason[: REASON_MAX - 1].rstrip()}…"


def tails(devices: Iterable[tuple[Key, Listed]]) -> dict[Key, str]:
    """For each of those that look the same, the end of its identity that tells it from the others;
    nothing if their identities are the same, too."""
    alike: dict[tuple[str, int | None], dict[Key, str]] = {}
    for key, device in devices:
        alike.setdefault((device.description, device.size), {})[key] = _own_part(device.identity)
    found: dict[Key, str] = {}
    for members in alike.values():
        different = {identity for identity in members.values() if identity}
        if len(set(members.values())) < 2:
            continue
        lengths = range(TAIL_MIN, IDENTITY_MAX + 1)
        length = lengths[bisect_left(lengths, True, key=partial(_differ, different))]
        found |= {key: identity[-length:] for key, identity in members.items() if identity}
    return found


def _differ(identities: set[str], length: int) -> bool:
    return len({each[-length:] for each in identities}) == len(identities)


def _own_part(identity: str) -> str:
    """The identity without the kinds of interfaces at its end, which are the same for all of a
    model; of a USB device, its number if it has one."""
    return kinds_in(identity)[0].rstrip(":")


def relatives_of(key: Key, devices: Mapping[Key, Listed], children: Iterable[Key]) -> list[str]:
    """Phrases on devices of other classes that are the same hardware."""
    phrases = []
    parent = parent_of(devices[key])
    if parent is not None and parent.device_class != key.device_class and parent in devices:
        phrases.append(_("on the USB device {device}").format(device=parent.device))
    disks = sorted((child.device for child in children), key=natural_key)
    if disks:
        names = ", ".join(disks[:VMS_MAX])
        phrases.append(
            ngettext("has the disk {names}", "has the disks {names}", len(disks)).format(
                names=names if len(disks) <= VMS_MAX else f"{names} …"
            )
        )
    return phrases


def _uses(device: Listed) -> list[str]:
    """Who has it, one phrase each."""
    used = sorted(device.attachments, key=lambda each: natural_key(each.vm))
    phrases = [_use(each) for each in used[:VMS_MAX]]
    if (more := len(used) - VMS_MAX) > 0:
        text = ngettext("attached to {count} more VM", "attached to {count} more VMs", more)
        phrases.append(text.format(count=more))
    return phrases


def _use(use: AttachedTo) -> str:
    text = _("attached to {vm}").format(vm=use.vm)
    words = ", ".join(hearing(use))
    return f"{text} ({words})" if words else text


def hearing(use: AttachedTo) -> list[str]:
    """What is to be known of an attachment beside that it is there."""
    words = []
    if use.left_over:
        words.append(_("not ended yet: {reason}").format(reason=in_row(use.left_over)))
    if use.listening:
        words.append(_("listening now"))
    if use.muted and use.unconfirmed:
        words.append(
            _("to be muted, may still hear: {reason}").format(reason=in_row(use.unconfirmed))
        )
    elif use.muted:
        words.append(_("muted"))
    elif use.unconfirmed:
        words.append(_("may still be muted: {reason}").format(reason=in_row(use.unconfirmed)))
    return words


def _why_not(device: Listed) -> str:
    """Why it cannot be attached to any VM; "" if nothing is known to be against it."""
    if not device.present:
        vms = ", ".join(sorted((each.vm for each in device.assignments), key=natural_key)[:VMS_MAX])
        return _("not there now; assigned to {vms}").format(vms=vms) if vms else _("not there now")
    if device.attachments:
        return ""  # it is in use by those
    if device.stale is not None:
        return _("{vm} cannot look at it now: {reason}").format(
            vm=device.backend, reason=device.stale
        )
    if device.busy is not None:
        described = class_named(device.device_class)
        if described is not None and described.heard:
            return _("{vm} cannot record it: {reason}").format(
                vm=device.backend, reason=device.busy
            )
        return _("in use in {vm}: {reason}").format(vm=device.backend, reason=device.busy)
    return ""


def _details(key: Key, device: Listed, why: str) -> list[str]:
    lines = [name_of(key)]
    if device.description:
        lines.append(_("It calls itself “{description}”.").format(description=device.description))
    if kinds := in_short(device.device_class, device.identity):
        lines.append(_("Has: {kinds}").format(kinds=kinds))
    if device.identity:
        lines.append(_("Identity: {identity}").format(identity=device.identity))
    if why:
        lines.append(why)
    if device.conflict:
        lines.append(_("No VM gets it by itself: {reason}").format(reason=device.conflict))
    assigned = sorted((each.vm for each in device.assignments), key=natural_key)
    if assigned:
        lines.append(_("Assigned to {vms}").format(vms=", ".join(assigned)))
    return lines


def _icon(device: Listed) -> Icon:
    if device.device_class == "block":
        is_part = device.parent is not None and device.parent_class in (None, "block")
        return "partition" if is_part else "disk"
    if device.device_class == "usb":
        kinds = kinds_in(device.identity)[1]
        for prefix, icon in _ICONS:
            if any(kind.startswith(prefix) for kind in kinds):
                return icon
    return _BY_CLASS.get(device.device_class, "usb")
