"""Everything that is shown, from everything that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.names import natural_key

from ..i18n import _, ngettext
from .device_rows import device_row, relatives_of, tails
from .families import in_order, parent_of
from .view import DeviceRef, Section, View
from .vm_rows import DOM0, HALTED, vm_rows

if TYPE_CHECKING:
    from .families import Member
    from .looks import Looks
    from .pairs import Pairs
    from .picture import Key, Picture
    from .view import DeviceRow
    from .work import Works

CLASSES = ("block", "mic", "usb")
"""Those that can be attached to a VM that runs, in the order in which they are shown."""

ROWS_MAX = 500
"""Devices of one class: more than a person looks through, and few enough to be shown at once."""

SILENT_MAX = 3
"""VMs without an agent that are named."""


class Known:
    """All that a view is made from. `why` says, as a sentence, why there is no connection; "" if
    there is one. `policy_ok`: every file of the policy is in force."""

    def __init__(self, picture: Picture, looks: Looks, works: Works, pairs: Pairs) -> None:
        self.picture = picture
        self.looks = looks
        self.works = works
        self.pairs = pairs
        self.why = _("Not connected to dom0's service yet.")
        self.policy_ok = True

    @property
    def is_current(self) -> bool:
        """Whether the picture is what there is now."""
        return not self.why and self.picture.is_complete


def compose(known: Known, generation: int) -> View:
    """The view. What is not current is shown as it was, and nothing in it can be chosen."""
    children = _children_elsewhere(known.picture)
    sections = tuple(_section(known, name, children) for name in CLASSES)
    shown = {key for key in known.picture.devices if key.device_class in CLASSES}
    return View(
        connected=known.is_current,
        status=_status(known),
        sections=sections,
        attached=sum(bool(known.picture.devices[key].attachments) for key in shown),
        generation=generation,
    )


def _children_elsewhere(picture: Picture) -> dict[Key, list[Key]]:
    """The devices of other classes that a device is the parent of: a stick's disks."""
    children: dict[Key, list[Key]] = {}
    for key, device in picture.devices.items():
        parent = parent_of(device)
        if parent is not None and parent.device_class != key.device_class:
            children.setdefault(parent, []).append(key)
    return children


def _section(known: Known, device_class: str, children: dict[Key, list[Key]]) -> Section:
    devices = known.picture.devices

    def is_kept(key: Key) -> bool:
        return bool(devices[key].attachments) or known.works.of(key) is not None

    members = in_order(devices, device_class, is_kept)
    shown = members[:ROWS_MAX]
    alike = tails((member.key, devices[member.key]) for member in shown)
    rows = tuple(_row(known, each, alike.get(each.key, ""), children) for each in shown)
    title = _title(device_class)
    if more := len(members) - len(rows):
        title = ngettext(
            "{title} ({count} more is not shown)", "{title} ({count} more are not shown)", more
        ).format(title=title, count=more)
    return Section(device_class, title, rows, "" if rows else _empty(known, device_class))


def _row(known: Known, member: Member, tail: str, children: dict[Key, list[Key]]) -> DeviceRow:
    picture, key = known.picture, member.key
    device = picture.devices[key]
    ref = DeviceRef(*key, device.identity)
    work, look = known.works.of(key), known.looks.of(ref)
    vms, note = None, ""
    if look is not None:
        again = known.pairs.vm_of(device)
        vms, note = vm_rows(ref, picture, look, work=work, again=again, is_current=known.is_current)
    return device_row(
        member,
        device,
        relatives=relatives_of(key, picture.devices, children.get(key, ())),
        tail=tail,
        work=work,
        is_current=known.is_current,
        vms=vms,
        note=note,
    )


def _title(device_class: str) -> str:
    return {
        "block": _("Block devices"),
        "mic": _("Microphones"),
        "usb": _("USB devices"),
    }[device_class]


def _status(known: Known) -> str:
    if known.why:
        if known.picture.devices:
            return _("{why} This is how it was before.").format(why=known.why)
        return known.why
    if not known.picture.is_complete:
        return _("Devices are being listed …")
    if strange := known.picture.strange:
        return ngettext(
            "{count} device or VM is left out, because it cannot be read (see the log).",
            "{count} devices or VMs are left out, because they cannot be read (see the log).",
            strange,
        ).format(count=strange)
    if not known.policy_ok:
        return _("The policy has errors, so an older one is in force: see “Policy...” below.")
    return ""


def _empty(known: Known, device_class: str) -> str:
    if not known.is_current:
        return _("not known")
    vms = known.picture.vms
    silent = sorted(
        (name for name, vm in vms.items() if vm.state != HALTED and not vm.agent and name != DOM0),
        key=natural_key,
    )
    if silent:
        return ngettext(
            "None is known. {vms} runs without an agent, so its devices are not known.",
            "None is known. {vms} run without an agent, so their devices are not known.",
            len(silent),
        ).format(vms=_some(silent))
    return {
        "block": _("No VM that runs has a block device to lend."),
        "mic": _("No VM that runs has a microphone to lend."),
        "usb": _("No VM that runs has a USB device to lend."),
    }[device_class]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SILENT_MAX])
    return shown if len(names) <= SILENT_MAX else f"{shown} …"
