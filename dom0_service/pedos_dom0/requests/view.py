"""What one caller may list, with a number for each change: the memory behind `watch.next`.

A view holds what it last showed of each device and VM. Whatever may have changed is looked at again
at the next request, through the one function that also decides what a list shows; only what looks
different counts as a change. So a caller learns of nothing that its list would not have, also when
the policy changes. A view is a log with one entry for each subject, its last change: a reader that
is slow finds fewer and later entries, and nothing waits for it.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.fields import DEVICES_MAX, PAGE_DEVICES_MAX
from pedos_protocol.messages import DeviceChanged, VmChanged, Watched
from pedos_protocol.schema import Room

from pedos_dom0.requests.listing import STEP
from pedos_dom0.tables.device_set import DeviceKey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from pedos_protocol.messages import Listed, VmInfo

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.requests.listing import Listing

    #: A device, or the name of a VM.
    Subject = DeviceKey | str

# Subjects that are gone, and that readers can still be told of: the disks and partitions of some
# drives that are pulled at once. A reader that misses more takes everything anew.
GONE_MAX = 256
# Devices that wait to be looked at again: all of one VM. Beyond that all are looked at.
UNSEEN_MAX = DEVICES_MAX
# Stale entries that the log may have beside one for each subject.
STALE_MAX = 256
# Bytes of an answer beside its changes.
ENVELOPE_MAX = 1024


class View:
    """What `caller` may list. `vms` gives the VMs, if it may list them; `rules` an object that is
    the same for as long as policy and facts are."""

    def __init__(
        self,
        caller: Caller,
        listing: Listing,
        vms: Callable[[], Iterable[VmInfo]] | None,
        rules: Callable[[], object],
    ) -> None:
        #: Names this numbering: no other run of the service has the same.
        self.numbering = secrets.token_hex(8)
        self.number = 0
        self.watchers = 0
        self.left_at = trio.current_time()  # when the last watcher left
        self.name = caller.name
        self.sees_all = caller.kind.sees_all
        self._caller = caller
        self._listing = listing
        self._vms = vms
        self._rules = rules
        self._seen_under: object = None
        self._shown: dict[Subject, Any] = {}  # devices as Listed, VMs as VmInfo
        self._log: list[tuple[int, Subject]] = []
        self._last: dict[Subject, int] = {}  # the other entries of the log are stale
        self._gone: dict[Subject, None] = {}
        self._forgotten = 0  # the last change of a subject that is no longer in `gone`
        self._unseen: dict[DeviceKey, None] = {}
        self._all_unseen = True
        self._vms_unseen = vms is not None
        self._looking = trio.Lock()
        self._waiting = trio.lowlevel.ParkingLot()

    def devices_changed(self, keys: Collection[DeviceKey]) -> None:
        """Something about these devices, with which the caller has to do, may be different."""
        if not keys:
            return
        self._unseen.update(dict.fromkeys(keys))
        if len(self._unseen) > UNSEEN_MAX:
            self._unseen.clear()
            self._all_unseen = True
        self.wake()

    def shown_of(self, keys: set[DeviceKey]) -> list[DeviceKey]:
        """Those of these devices of other VMs that it shows: the caller may have had them."""
        shown = (key for key in self._shown.keys() & keys if isinstance(key, DeviceKey))
        return sorted(key for key in shown if key.backend != self.name)

    def vms_changed(self) -> None:
        """Something about VMs may be different."""
        if self._vms is not None:
            self._vms_unseen = True
            self.wake()

    def wake(self) -> None:
        """Has those that wait look again."""
        self._waiting.unpark_all()

    async def changed(self) -> None:
        """Returns when something may be different; at once if it may be already."""
        if not self._is_unseen() and not self._vms_unseen:
            await self._waiting.park()

    def _is_unseen(self) -> bool:
        return self._all_unseen or bool(self._unseen) or self._rules() is not self._seen_under

    async def look(self) -> None:
        """Numbers what is different since the last look. It takes the caller's turn between steps,
        since a VM may have thousands of devices."""
        async with self._looking:
            while self._is_unseen():
                await self._look_again()
            if self._vms is not None and self._vms_unseen:
                self._vms_unseen = False
                now = {vm.name: vm for vm in self._vms()}
                gone = [each for each in self._shown if isinstance(each, str) and each not in now]
                for name in (*gone, *now):
                    self._note(name, now.get(name))

    async def _look_again(self) -> None:
        begun = whole = False
        try:
            for some in self._take_unseen():
                if not some:
                    await trio.lowlevel.checkpoint()
                    continue
                if begun:
                    await self._caller.turn()
                begun = True
                uses = self._listing.uses_of(self._caller, frozenset(some))
                shown = self._listing.shown_to(self._caller, some, uses)
                for key, device in zip(some, shown, strict=True):
                    self._note(key, device)
            whole = True
        finally:
            if not whole:  # cancelled
                self._all_unseen = True

    def _take_unseen(self) -> Iterator[list[DeviceKey]]:
        """What to look at again, as it is taken: at most STEP devices at once, or none where STEP
        others were passed over. All VMs' devices are not even gathered in one step, nor sorted:
        that would hold the event loop for some 50 ms."""
        keys: Iterator[Subject] = iter(list(self._unseen))
        new: Iterator[DeviceKey] = iter(())
        if (rules := self._rules()) is not self._seen_under:
            self._seen_under, self._all_unseen = rules, True
        if self._all_unseen:
            keys, new = iter(list(self._shown)), self._listing.keys_for(self._caller)
        self._unseen.clear()
        self._all_unseen = False
        while some := list(islice(keys, STEP)):
            yield [each for each in some if isinstance(each, DeviceKey)]
        while found := list(islice(new, STEP)):
            yield [key for key in found if key not in self._shown]

    def _note(self, subject: Subject, now: Listed | VmInfo | None) -> None:
        if now == self._shown.get(subject):
            return
        self.number += 1
        self._last[subject] = self.number
        self._log.append((self.number, subject))
        self._gone.pop(subject, None)
        if now is not None:
            self._shown[subject] = now
        else:
            del self._shown[subject]
            self._gone[subject] = None
            if len(self._gone) > GONE_MAX:
                oldest = next(iter(self._gone))
                del self._gone[oldest]
                self._forgotten = self._last.pop(oldest)
        if len(self._log) > 2 * len(self._last) + STALE_MAX:
            self._log = [entry for entry in self._log if self._last.get(entry[1]) == entry[0]]

    def reaches(self, number: int, begun: int) -> bool:
        """Whether a reader that knows everything up to `number` can be told of all changes since.

        One that is still taking everything that there was at `begun` misses nothing that had gone
        away by then.
        """
        return self._forgotten <= max(number, begun) <= self.number

    def after(
        self, number: int, begun: int, device_class: str | None, gap: str | None = None
    ) -> Watched:
        """The last change of each subject that changed after `number`, in order, as far as they fit
        into an answer; after 0 it is everything that exists. Of devices, those of a class.

        An answer has no more of them than a page of a list: it is made in one step, and a VM may
        ask for one as often as for a page.
        """
        devices: list[DeviceChanged] = []
        vms: list[VmChanged] = []
        room = Room(FRAME_MAX - ENVELOPE_MAX)
        last, complete = number, True
        for at, subject in islice(self._log, bisect_right(self._log, number, key=_at), None):
            if self._last.get(subject) != at or (number == 0 and subject in self._gone):
                continue
            change: DeviceChanged | VmChanged
            if isinstance(subject, str):
                change = VmChanged(at, subject, self._shown.get(subject))
            elif device_class in (None, subject.device_class):
                now = self._shown.get(subject)
                change = DeviceChanged(
                    at, subject.device_class, subject.backend, subject.device, now
                )
            else:
                continue
            is_full = len(devices) + len(vms) == PAGE_DEVICES_MAX or not room.takes(change)
            if is_full and (devices or vms):
                complete = False
                break
            last = at
            if isinstance(change, VmChanged):
                vms.append(change)
            else:
                devices.append(change)
        return Watched(
            numbering=self.numbering,
            number=self.number if complete else last,
            begun=0 if complete else begun,
            complete=complete,
            devices=tuple(devices),
            vms=tuple(vms),
            gap=gap,
        )


def _at(entry: tuple[int, Subject]) -> int:
    return entry[0]
