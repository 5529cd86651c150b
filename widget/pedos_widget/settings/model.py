"""What a person has before them: the assignments of one VM, and what is to become of them.

No Qt and no I/O. The window changes this by `add`, `change`, `remove` and `undo`; `saving` works
off `to_save` and tells what came of each step. A row is never lost: what was not saved stays as it
was edited, with the reason, and the list of the service is merged under it whenever it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal

from pedos_cli.answers import take, take_maps
from pedos_cli.assign_words import became, is_to, stays
from pedos_cli.devices import device_name
from pedos_protocol.device_classes import class_named, class_names
from pedos_protocol.names import natural_key

from pedos_widget.i18n import _
from pedos_widget.settings.wish import Match, Wish, stored_wish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_widget.settings.wish import Slot

    Listed = Mapping[str, object]


class State(Enum):
    """What has become of a row."""

    SAVED = "saved"
    EDITED = "edited"  # new, other than saved, or to be removed
    SAVING = "saving"
    FAILED = "failed"  # the service refused, and nothing changed
    UNKNOWN = "unknown"  # the service went away before it answered: done, or not


#: A row in one of these is not edited: what it says is on its way.
BUSY = (State.SAVING, State.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Row:
    """An assignment. `stored` is what the service has (None: nothing yet), `wanted` what is to be
    (None: nothing any more). `now` is what has become of what is stored; `trial` what would become
    of what is wanted, None while nobody knows, and not of this moment unless it `is_tried`.
    `problem` is why it is not saved, `note` what else
    happened to it. `key` tells it from others for as long as the window is there."""

    key: int
    stored: Wish | None
    wanted: Wish | None
    state: State = State.SAVED
    now: tuple[str, ...] = ()
    trial: tuple[str, ...] | None = None
    is_tried: bool = False
    problem: str = ""
    note: str = ""

    @property
    def shown(self) -> Wish:
        """What the row is about."""
        wish = self.wanted or self.stored
        assert wish is not None
        return wish

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to save."""
        return self.wanted == self.stored

    @property
    def is_move(self) -> bool:
        """Whether it is to be another assignment, so that the one there is must be taken away."""
        return (
            self.stored is not None
            and self.wanted is not None
            and self.stored.slot != self.wanted.slot
        )

    def edited(self, wanted: Wish | None) -> Row:
        """The row with something else wanted."""
        state = State.SAVED if wanted == self.stored else State.EDITED
        return Row(self.key, self.stored, wanted, state, self.now)


@dataclass(frozen=True, slots=True)
class Step:
    """One request to the service about one row."""

    key: int
    verb: Literal["assign", "unassign"]
    wish: Wish


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the service has: whether the VM runs (None: there is no such VM any more), items of
    `device.assignments` and of `device.list` by class, and, in words, what could not be read."""

    runs: bool | None
    assigned: Mapping[str, Sequence[Listed]]
    devices: Mapping[str, Sequence[Listed]]
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that is there and could be assigned. `lasting` is the part of its identity by
    which an assignment recognises it, "" if there is none or nobody has asked yet."""

    device_class: str
    backend: str
    device: str
    identity: str
    text: str
    lasting: str = ""

    @property
    def name(self) -> str:
        """SOURCE:ID."""
        return f"{self.backend}:{self.device}"


@dataclass(slots=True)
class Settings:
    """The assignments of `vm`."""

    vm: str
    runs: bool | None = None
    is_loaded: bool = False
    troubles: tuple[str, ...] = ()
    _decides: object = None
    _rows: dict[int, Row] = field(default_factory=dict)
    _devices: dict[str, Sequence[Listed]] = field(default_factory=dict)
    _last_key: int = 0

    # What is shown

    @property
    def rows(self) -> list[Row]:
        """In the order of classes, then in natural order."""
        return sorted(self._rows.values(), key=_place)

    def row(self, key: int | None) -> Row | None:
        """The row, if it is still there."""
        return None if key is None else self._rows.get(key)

    @property
    def is_saved(self) -> bool:
        """Whether the service has everything as it is shown."""
        return all(each.is_clean for each in self._rows.values())

    @property
    def is_saving(self) -> bool:
        """Whether a request is under way."""
        return any(each.state is State.SAVING for each in self._rows.values())

    def lines(self, row: Row) -> list[str]:
        """What a person should know of a row: why it is not saved, what is the case or would be,
        and when a change takes effect."""
        found = [each for each in (row.problem, row.note) if each]
        if row.wanted is None:
            return found + [stays(name, self.vm) for name in self._held(row.stored)]
        found += row.now if row.is_clean else row.trial or ()
        if when := self._when(row, row.wanted):
            found.append(when)
        return found

    def _when(self, row: Row, wanted: Wish) -> str:
        held = self._held(row.stored)
        described = class_named(wanted.device_class)
        is_live = described is None or described.live
        if self.runs and not is_live and not (row.is_clean and held):
            return _("It takes effect at the next start of {vm}.").format(vm=self.vm)
        if held and row.stored is not None and row.stored.options != wanted.options:
            return _("Its options change when it is attached the next time.")
        return ""

    def _held(self, wish: Wish | None) -> list[str]:
        """The devices that an assignment is to and that the VM has now."""
        return [
            device_name(each)
            for each in ([] if wish is None else self._meant(wish))
            if any(user.get("vm") == self.vm for user in take_maps(each, "attachments"))
        ]

    def _meant(self, wish: Wish) -> list[Listed]:
        """The devices that are there and that an assignment is to."""
        named = {"backend": wish.backend, "device": wish.device, "identity": wish.identity}
        devices = self._devices.get(wish.device_class, ())
        return [each for each in devices if each.get("present") is True and is_to(named, each)]

    def description(self, wish: Wish) -> str:
        """What the device says of itself, if it is there."""
        return next((str(each.get("description", "")) for each in self._meant(wish)), "")

    def candidates(self, text: str = "") -> list[Candidate]:
        """The devices of other VMs that are there and that no row is about yet; those in which each
        word of `text` occurs."""
        words = text.casefold().split()
        wanted = [row.wanted for row in self._rows.values() if row.wanted is not None]
        taken = {_key(each) for wish in wanted for each in self._meant(wish)}
        found = []
        for devices in self._devices.values():
            for each in devices:
                if each.get("present") is not True or _key(each) in taken:
                    continue
                candidate = candidate_of(each)
                is_found = all(word in candidate.text.casefold() for word in words)
                if candidate.backend != self.vm and is_found:
                    found.append(candidate)
        return found

    def choices(self, row: Row) -> dict[Match, Wish]:
        """What of the row's device may count, and the wish for each: as far as the assignment, or
        the device that is there, tells its port and its identity."""
        wish = row.shown
        port, identity = wish.device, wish.identity
        for known in (row.wanted, row.stored):
            if known is not None:
                port, identity = port or known.device, identity or known.identity
        for each in self._meant(wish):
            port, identity = (
                port or take(each, "device", str),
                identity or take(each, "identity", str),
            )
        found: dict[Match, Wish] = {}
        if port is not None and identity:
            found["both"] = replace(wish, device=port, identity=identity)
        if identity:
            found["device"] = replace(wish, device=None, identity=identity)
        if port is not None:
            found["port"] = replace(wish, device=port, identity="")
        return found

    # What a person does

    def add(self, candidate: Candidate) -> int:
        """Want a device: that one and no other, if it can be told apart from others in its place.
        Returns the key of the row."""
        described = class_named(candidate.device_class)
        wish = Wish(
            candidate.device_class,
            candidate.backend,
            candidate.device,
            candidate.lasting,
            "auto-attach" if described is None or described.live else "required",
        )
        for row in self._rows.values():
            if row.shown.slot == wish.slot:  # it was to be removed, or has come just now
                if row.wanted is None and row.state not in BUSY:
                    self._rows[row.key] = row.edited(wish)
                return row.key
        return self._new(None, wish, State.EDITED)

    def change(self, key: int, wanted: Wish) -> None:
        """Want another mode, other options, or that another part of the device counts. ValueError,
        with a sentence, if another row is about the same."""
        row = self._rows[key]
        if row.state in BUSY:
            return
        for other in self._rows.values():
            if other.key != key and wanted.slot in (
                each.slot for each in (other.wanted, other.stored) if each is not None
            ):
                raise ValueError(_("{name} is in the list already.").format(name=wanted.name))
        self._rows[key] = row.edited(wanted)

    def remove(self, key: int) -> None:
        """Want it no more. A row that was never saved is gone."""
        row = self._rows[key]
        if row.state in BUSY:
            return
        if row.stored is None:
            del self._rows[key]
        else:
            self._rows[key] = row.edited(None)

    def undo(self, key: int) -> None:
        """Want what the service has."""
        row = self._rows[key]
        if row.stored is None:
            self.remove(key)
        elif row.state not in BUSY:
            self._rows[key] = row.edited(row.stored)

    # The dry run

    def to_try(self) -> list[Row]:
        """The rows of which nobody knows what saving them would come to."""
        return [
            row
            for row in self.rows
            if row.wanted and not row.is_clean and not row.is_tried and row.state not in BUSY
        ]

    def tried(self, key: int, wanted: Wish, lines: Sequence[str], wish: Wish | None = None) -> None:
        """What a dry run of `wanted` said; `wish` is how the service understands it. Ignored if
        something else is wanted by now."""
        row = self._rows.get(key)
        if row is not None and row.wanted == wanted and not row.is_clean and row.state not in BUSY:
            tried = replace(row, wanted=wish or wanted, trial=tuple(lines), is_tried=True)
            self._rows[key] = tried

    # Saving

    def to_save(self) -> list[Row]:
        """The rows to save. What is removed comes first, so that names in the VM are free."""
        open_rows = [row for row in self.rows if not row.is_clean and row.state not in BUSY]
        return sorted(open_rows, key=lambda row: row.wanted is not None)

    def steps(self, row: Row) -> list[Step]:
        """What to ask of the service, one after the other, and only as long as nothing fails: a
        device gets its new assignment before it loses the old one, so that it is never without."""
        steps = []
        if row.wanted is not None:
            steps.append(Step(row.key, "assign", row.wanted))
        if row.stored is not None and (row.wanted is None or row.is_move):
            steps.append(Step(row.key, "unassign", row.stored))
        return steps

    def begin(self, step: Step) -> None:
        """The request goes out."""
        row = self._rows[step.key]
        self._rows[step.key] = replace(row, state=State.SAVING, problem="", note="")

    def done(self, step: Step, wish: Wish | None = None, now: Sequence[str] = ()) -> None:
        """It is done; of an assignment, `wish` is how the service has it, and `now` what came of
        it."""
        row = self._rows[step.key]
        if step.verb == "assign":
            row = replace(row, wanted=wish or row.wanted, now=tuple(now))
            if row.is_move:  # it is done with the next step
                self._rows[row.key] = row
                return
        if row.wanted is None:
            del self._rows[row.key]
        else:
            self._rows[row.key] = Row(row.key, row.wanted, row.wanted, now=row.now)

    def failed(self, step: Step, why: str, *, is_known: bool = True) -> None:
        """It was refused; or (not `is_known`) nobody knows what came of it."""
        row = self._rows[step.key]
        state = State.FAILED if is_known else State.UNKNOWN
        if step.verb == "unassign" and row.wanted is not None:
            # The new assignment is there, and the old one is a row of its own.
            self._rows[row.key] = Row(row.key, row.wanted, row.wanted, now=row.now)
            row = self._rows[self._new(row.stored, None, state)]
        self._rows[row.key] = replace(row, state=state, problem=why)

    # What the service has

    def load(self, loaded: Loaded) -> None:
        """Take what the service has, under what is edited. ProtocolError, with nothing changed, if
        it cannot be understood."""
        stored: dict[Slot, tuple[Wish, tuple[str, ...]]] = {}
        for device_class, items in loaded.assigned.items():
            for item in items:
                if item.get("vm") == self.vm:  # those that this VM is the source of are listed too
                    wish = stored_wish(device_class, item)
                    stored[wish.slot] = wish, tuple(became(item))
        for devices in loaded.devices.values():
            for each in devices:
                candidate_of(each)
                take_maps(each, "attachments")
        decides = _what_decides(loaded)
        is_same, self._decides = decides == self._decides, decides
        self._devices.update(loaded.devices)
        self.runs, self.troubles, self.is_loaded = loaded.runs, loaded.troubles, True
        for row in list(self._rows.values()):
            slots = [each.slot for each in (row.stored, row.wanted) if each is not None]
            if row.state is State.SAVING or row.shown.device_class not in loaded.assigned:
                for slot in slots:
                    stored.pop(slot, None)
                continue
            there = [slot for slot in slots if slot in stored]
            if row.is_move and len(there) == 2:  # its first half was done
                old, _now = stored.pop(there.pop(0))
                self._new(old, None, State.EDITED)
            # What would happen to it may be something else by now.
            tried = replace(row, is_tried=row.is_tried and is_same)
            self._merge(tried, stored.pop(there[0]) if there else None)
        for wish, now in stored.values():
            key = self._new(wish, wish, State.SAVED)
            self._rows[key] = replace(self._rows[key], now=now)

    def _merge(self, row: Row, found: tuple[Wish, tuple[str, ...]] | None) -> None:
        """`found` is what the service has in the row's place."""
        is_open = row.state is State.UNKNOWN
        if found is not None and (row.is_clean or row.wanted == found[0]):
            self._rows[row.key] = Row(row.key, found[0], found[0], now=found[1])
        elif found is None and (row.wanted is None or (row.is_clean and row.stored is not None)):
            del self._rows[row.key]
        else:
            wish, now = found or (None, ())
            changed = replace(row, stored=wish, now=now)
            if row.stored is not None and wish is None:
                changed = replace(changed, note=_("It was removed elsewhere meanwhile."))
            elif row.stored is not None and wish != row.stored:
                changed = replace(changed, note=_("It was changed elsewhere meanwhile."))
            if is_open:
                problem = _("It was not saved, since the service went away.")
                changed = replace(changed, state=State.FAILED, problem=problem)
            self._rows[row.key] = changed

    def _new(self, stored: Wish | None, wanted: Wish | None, state: State) -> int:
        self._last_key += 1
        self._rows[self._last_key] = Row(self._last_key, stored, wanted, state)
        return self._last_key


def candidate_of(listed: Listed, lasting: str = "") -> Candidate:
    """A device of `device.list`; ProtocolError if it is none."""
    device_class = take(listed, "device_class", str)
    identity = take(listed, "identity", str)
    described = class_named(device_class)
    words = [
        device_name(listed),
        take(listed, "description", str),
        described.one if described is not None else device_class,
        identity,
    ]
    return Candidate(
        device_class,
        take(listed, "backend", str),
        take(listed, "device", str),
        identity,
        ", ".join(filter(None, words)),
        lasting,
    )


def _what_decides(loaded: Loaded) -> object:
    """Of what the service has, the part that a dry run may depend on: not who listens to a
    microphone, which changes all the time. The service records each dry run."""
    devices = {
        device_class: [
            (
                {key: value for key, value in each.items() if key != "attachments"},
                [user.get("vm") for user in take_maps(each, "attachments")],
            )
            for each in listed
        ]
        for device_class, listed in loaded.devices.items()
    }
    return loaded.runs, loaded.assigned, devices


def _key(listed: Listed) -> tuple[object, ...]:
    return listed.get("device_class"), listed.get("backend"), listed.get("device")


def _place(row: Row) -> tuple[object, ...]:
    """Its place in the list. The order of classes is that of the documentation; what is new keeps
    its place while it is edited."""
    wish = row.stored or row.shown
    names = class_names()
    known = wish.device_class in names
    return (
        names.index(wish.device_class) if known else len(names),
        wish.device_class,
        natural_key(wish.backend),
        natural_key(wish.device or "\x7f"),
        natural_key(wish.identity),
        row.key,
    )
