"""An agent's report, assembled from its pages. Pure.

The pages are untrusted: their number and the number of their devices are bounded, they come in
order, and the report takes effect only with the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.fields import DEVICES_MAX, REPORT_PAGES_MAX

from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.tables.device_set import DeviceSet

if TYPE_CHECKING:
    from collections.abc import Collection

    from pedos_protocol.messages import AgentReport, ExportState, ImportState, Missing


@attrs.frozen(eq=False)
class Report:
    """A whole report; see AgentReport."""

    revision: int
    devices: DeviceSet
    exports: tuple[ExportState, ...]
    imports: tuple[ImportState, ...]
    missing: tuple[Missing, ...]


def of_classes(page: AgentReport, classes: Collection[str]) -> tuple[AgentReport, set[str]]:
    """The page without devices of classes other than these, and those devices. Attachments stay:
    dom0 ends those that it does not know, whatever their class."""
    named = {each.device_class for each in page.devices}
    others = named.union(each.device_class for each in page.missing).difference(classes)
    if not others:
        return page, others
    devices = tuple(each for each in page.devices if each.device_class not in others)
    missing = tuple(each for each in page.missing if each.device_class not in others)
    return attrs.evolve(page, devices=devices, missing=missing), others


def check_page(page: AgentReport) -> None:
    """RemoteProtocolError if a device is borrowed under a name that none of its class can have, or
    if there is a class of a parent and no parent."""
    for device in page.devices:
        if device.parent is None and device.parent_class is not None:
            raise RemoteProtocolError(f"{device.device} has the class of a parent and no parent")
    for each in page.imports:
        if each.frontend is not None:
            wrong = class_of(each.device_class).wrong_name(each.frontend)
            if wrong is not None:
                raise RemoteProtocolError(f"its report of imports is malformed: {wrong}")


@attrs.define
class _Unfinished:
    """A report whose pages are arriving: its first one, all devices so far, the last page's
    number."""

    first: AgentReport
    devices: DeviceSet
    page: int = 0


class ReportPages:
    """Assembles the pages of one connection. At any time at most one report is in progress, and it
    takes no more memory than the complete one before it may."""

    __slots__ = ("_backend", "_last", "_unfinished")

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._last = -1  # the revision of the last complete report
        self._unfinished: _Unfinished | None = None

    def take(self, page: AgentReport, like: DeviceSet | None = None) -> Report | None:
        """The report that this page completes, or None. Devices that it repeats are the same
        objects as in `like`. RemoteProtocolError for a page out of order."""
        if page.revision <= self._last:
            return None  # requests are served concurrently, so an older report may arrive later
        report = self._unfinished
        if page.page == 0:
            # The agent has started over, and its unfinished report does not count.
            report = self._unfinished = _Unfinished(page, DeviceSet(self._backend))
        elif report is None or (page.revision, page.page) != (
            report.first.revision,
            report.page + 1,
        ):
            raise RemoteProtocolError(
                f"page {page.page} of report {page.revision} comes where {self._expected()} is"
            )
        elif page.page >= REPORT_PAGES_MAX:
            raise RemoteProtocolError(f"a report has more than {REPORT_PAGES_MAX} pages")
        elif page.exports or page.imports:
            raise RemoteProtocolError("exports and imports are on a page that is not the first")
        report.page = page.page
        report.devices.add(page.devices, like)
        if len(report.devices) > DEVICES_MAX:
            raise RemoteProtocolError(f"a report has more than {DEVICES_MAX} devices")
        if not page.last:
            return None
        self._unfinished, self._last = None, page.revision
        report.devices.finish()
        first = report.first
        return Report(page.revision, report.devices, first.exports, first.imports, page.missing)

    def _expected(self) -> str:
        report = self._unfinished
        if report is None:
            return "the first page of one"
        return f"page {report.page + 1} of report {report.first.revision}"
