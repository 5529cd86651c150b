"""Everything that is shown, from everything that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pedos_protocol.names import natural_key

from ..i18n import _, ngettext
from .device_rows import device_row, relatives_of, tails
from .families import in_order, parent_of, sort_key
from .view import DeviceRef, Section, View
from .vm_rows import DOM0, HALTED, vm_rows

if TYPE_CHECKING:
    from pedos_protocol.messages import Listed

    from .families import Member, SortKey
    from .looks import Looks
    from .pairs import Pairs
    from .picture import Key, Picture
    from .view import DeviceRow, VmRow
    from .work import Work, Works

CLASSES = ("block", "mic", "usb")
"""Those that can be attached to a VM that runs, in the order in which they are shown."""

ROWS_MAX = 500
"""Devices of one class: more than a person looks through, and few enough to be shown at once."""

SILENT_MAX = 3
"""VMs without an agent that are named."""


class Known:
    """All that a view is made from. `why` says, as a sentence, why there is no connection; "" if
    there is one. `why_not_asked`, why policy's questions are not asked here, though they should be.
    `policy_ok`: every file of the policy is in force."""

    def __init__(self, picture: Picture, looks: Looks, works: Works, pairs: Pairs) -> None:
        self.picture = picture
        self.looks = looks
        self.works = works
        self.pairs = pairs
        self.why = _("Not connected to dom0's service yet.")
        self.why_not_asked = ""
        self.policy_ok = True

    @property
    def is_current(self) -> bool:
        """Whether the picture is what there is now."""
        return not self.why and self.picture.is_complete


class Composer:
    """Composes one view after the other, and of each only what is different from the one before: a
    VM that changes one of thousands of devices without end costs little more than that one."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._shape = -1
        self._children: dict[Key, list[Key]] = {}
        self._sort_keys: dict[Key, SortKey] = {}
        self._orders: dict[str, tuple[frozenset[Key], list[Member]]] = {}
        self._rows: dict[Key, tuple[_Parts, DeviceRow]] = {}

    def compose(self, generation: int) -> View:
        """The view. What is not current is shown as it was, and nothing in it can be chosen."""
        known = self._known
        if self._shape != known.picture.shape:
            self._shape = known.picture.shape
            self._children = _children_elsewhere(known.picture)
            before = self._sort_keys
            self._sort_keys = {
                key: before.get(key) or sort_key(key) for key in known.picture.devices
            }
            self._orders.clear()
        used = [key for key, device in known.picture.devices.items() if device.attachments]
        kept = {*used, *known.works.keys()}
        rows, self._rows = self._rows, {}
        sections = tuple(self._section(name, kept, rows) for name in CLASSES)
        return View(
            connected=known.is_current,
            status=_status(known),
            sections=sections,
            attached=sum(key.device_class in CLASSES for key in used),
            generation=generation,
        )

    def _section(
        self, device_class: str, kept: set[Key], before: dict[Key, tuple[_Parts, DeviceRow]]
    ) -> Section:
        known = self._known
        devices = known.picture.devices
        members = self._members(device_class, kept)
        shown = members[:ROWS_MAX]
        alike = tails((member.key, devices[member.key]) for member in shown)
        rows = []
        for member in shown:
            parts = self._parts(member, alike.get(member.key, ""))
            same = before.get(member.key)
            row = same[1] if same is not None and same[0] == parts else _row(member, parts)
            self._rows[member.key] = parts, row
            rows.append(row)
        title = _title(device_class)
        if more := len(members) - len(rows):
            title = ngettext(
                "{title} ({count} more is not shown)", "{title} ({count} more are not shown)", more
            ).format(title=title, count=more)
        empty = "" if rows else _empty(known, device_class)
        return Section(device_class, title, tuple(rows), empty)

    def _members(self, device_class: str, kept: set[Key]) -> list[Member]:
        own = frozenset(key for key in kept if key.device_class == device_class)
        order = self._orders.get(device_class)
        if order is None or order[0] != own:
            devices = self._known.picture.devices
            members = in_order(devices, device_class, own.__contains__, self._sort_keys)
            order = self._orders[device_class] = own, members
        return order[1]

    def _parts(self, member: Member, tail: str) -> _Parts:
        known, key = self._known, member.key
        picture = known.picture
        device = picture.devices[key]
        ref = DeviceRef(*key, device.identity)
        work, look = known.works.of(key), known.looks.of(ref)
        vms, note = None, ""
        if look is not None:
            again, is_current = known.pairs.vm_of(device), known.is_current
            vms, note = vm_rows(ref, picture, look, work=work, again=again, is_current=is_current)
        relatives = relatives_of(key, picture.devices, self._children.get(key, ()))
        return _Parts(device, member, tail, relatives, work, known.is_current, vms, note)


class _Parts(NamedTuple):
    """All that a device's row is made from."""

    device: Listed
    member: Member
    tail: str
    relatives: list[str]
    work: Work | None
    is_current: bool
    vms: tuple[VmRow, ...] | None
    note: str


def compose(known: Known, generation: int) -> View:
    """The first view of what is known."""
    return Composer(known).compose(generation)


def _children_elsewhere(picture: Picture) -> dict[Key, list[Key]]:
    """The devices of other classes that a device is the parent of: a stick's disks."""
    children: dict[Key, list[Key]] = {}
    for key, device in picture.devices.items():
        parent = parent_of(device)
        if parent is not None and parent.device_class != key.device_class:
            children.setdefault(parent, []).append(key)
    return children


def _row(member: Member, parts: _Parts) -> DeviceRow:
    return device_row(
        member,
        parts.device,
        relatives=parts.relatives,
        tail=parts.tail,
        work=parts.work,
        is_current=parts.is_current,
        vms=parts.vms,
        note=parts.note,
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
    return _about_policy(known)


def _about_policy(known: Known) -> str:
    if known.why_not_asked:
        return _("Questions of dom0 are not asked here: {reason}.").format(
            reason=known.why_not_asked
        )
    if not known.policy_ok:
        # It may come when the menu is open, and has no more room than the shortest of menus.
        return _("The policy has errors: see “Policy...” of the Devices widget.")
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
