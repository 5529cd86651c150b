"""A report to dom0 in pages, and which devices it contains if not all fit. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
from pedos_protocol.agent_messages import AgentReport, Device, ExportState, ImportState, Missing
from pedos_protocol.fields import DEVICES_MAX, PAGE_DEVICES_MAX, REPORT_PAGES_MAX, version_of
from pedos_protocol.schema import wire_size

from pedos_agent.inventory.local_device import LocalDevice

Key = tuple[str, str]

# Bytes of devices on a page; the rest of its frame is for its envelope. The first page may have 64
# exports and 64 imports, too.
PAGE_BYTES: Final = 54 * 1024
FIRST_PAGE_BYTES: Final = 24 * 1024
# No device takes more: five texts of 128 characters with four bytes each at most, and sixteen ids
# of others that share its data.
DEVICE_BYTES_MAX: Final = 4096
# A device takes its bytes or its part of a page, whichever is more: so a page is full at about
# PAGE_BYTES for either reason, and devices of so much altogether fit into the pages that there are.
_SHARE: Final = PAGE_BYTES // PAGE_DEVICES_MAX
WEIGHT_MAX: Final = (REPORT_PAGES_MAX - 2) * (PAGE_BYTES - DEVICE_BYTES_MAX)
# What a dom0 that speaks version 1 of the protocol reads; it refuses a whole report because of one
# device with more.
CLASSES_IN_1: Final = ("block", "usb", "pci", "mic")
IDENTITY_MAX_IN_1: Final = 128
TOO_MANY: Final = f"a VM reports at most {DEVICES_MAX} devices, in {WEIGHT_MAX >> 10} KiB"


def those_that_fit(found: Mapping[Key, LocalDevice], ranks: Mapping[Key, int]) -> set[Key]:
    """The devices of one report: those of the lowest rank first, those without one last and in
    their order."""
    kept: set[Key] = set()
    weight = 0
    for key in sorted(found, key=lambda key: ranks.get(key, math.inf)):
        weight += max(_SHARE, wire_size(found[key].device))
        if len(kept) == DEVICES_MAX or weight > WEIGHT_MAX:
            break
        kept.add(key)
    return kept


def pages(
    revision: int,
    devices: Iterable[Device],
    exports: Sequence[ExportState],
    imports: Sequence[ImportState],
    missing: Sequence[Missing],
) -> Iterator[AgentReport]:
    """The report in its form on the wire."""
    for number, (taken, last) in enumerate(_taken(devices)):
        yield AgentReport(
            revision=revision,
            devices=tuple(taken),
            exports=() if number else tuple(exports),
            imports=() if number else tuple(imports),
            page=number,
            last=last,
            missing=tuple(missing) if last else (),
        )


def page_in_1(
    revision: int,
    devices: Iterable[Device],
    exports: Sequence[ExportState],
    imports: Sequence[ImportState],
) -> AgentReport:
    """The report to a dom0 that speaks version 1 of the protocol, which has no pages: lent devices
    come first, because it ends what is lent and not reported, and others as far as they fit."""
    lent = {(each.device_class, each.device) for each in exports}
    known = [
        _in_1(each)
        for each in devices
        if each.device_class in CLASSES_IN_1 and len(each.identity) <= IDENTITY_MAX_IN_1
    ]
    known.sort(key=lambda each: (each.device_class, each.device) not in lent)
    attached = sum(map(wire_size, exports)) + sum(map(wire_size, imports))
    taken, _ = next(_taken(known, PAGE_BYTES - attached))
    return AgentReport(revision, tuple(taken), tuple(exports), tuple(imports))


def _in_1(device: Device) -> Device:
    """The device as version 1 can say it. There a parent is of the device's own class, and what
    cannot be looked at now is not known to be: so it is busy, for that reason."""
    later = {each.name: each.default for each in attrs.fields(Device) if version_of(each) > 1}
    own = {
        "parent": device.parent if device.parent_class in (None, device.device_class) else None,
        "busy": device.busy or device.stale,
    }
    changes: dict[str, Any] = {**later, **own}
    return attrs.evolve(device, **changes)


def _taken(
    devices: Iterable[Device], left: int = FIRST_PAGE_BYTES
) -> Iterator[tuple[list[Device], bool]]:
    """The devices of each page, of which the first has so many bytes `left`; and whether it is the
    last one."""
    page: list[Device] = []
    for device in devices:
        size = wire_size(device)
        if page and (size > left or len(page) == PAGE_DEVICES_MAX):
            yield page, False
            page, left = [], PAGE_BYTES
        page.append(device)
        left -= size
    yield page, True
