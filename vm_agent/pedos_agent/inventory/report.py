"""A report to dom0 in pages, and which devices it contains if not all fit. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pedos_protocol.agent_messages import AgentReport, Device, ExportState, ImportState, Missing
from pedos_protocol.fields import DEVICES_MAX, PAGE_DEVICES_MAX, REPORT_PAGES_MAX
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


def _taken(devices: Iterable[Device]) -> Iterator[tuple[list[Device], bool]]:
    """The devices of each page, and whether it is the last one."""
    page: list[Device] = []
    left = FIRST_PAGE_BYTES
    for device in devices:
        size = wire_size(device)
        if page and (size > left or len(page) == PAGE_DEVICES_MAX):
            yield page, False
            page, left = [], PAGE_BYTES
        page.append(device)
        left -= size
    yield page, True
