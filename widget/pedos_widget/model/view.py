"""What is shown: plain values, complete and harmless as they are.

A menu, a window and a test read them; nothing in them refers to what they were made from. All texts
are plain text and never markup: whoever hands one to a toolkit that reads markup escapes it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """A device as it was shown. Whoever acts on it means the one with this `identity`, so another
    device that has got the same id meanwhile is never attached in its place."""

    device_class: str
    backend: str
    device: str
    identity: str


class Action(Enum):
    """What choosing a VM does."""

    ATTACH = "attach"
    EJECT = "eject"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM in the list of one device. `text` is the whole row, with the reason if it is not
    `enabled`; `detail` has the whole reason where the row has its beginning. `is_ask`: policy asks
    a person first. `is_again`: the entry "Attach to ... again", which precedes all others."""

    vm: str
    action: Action
    text: str
    enabled: bool
    bold: bool = False
    detail: str = ""
    is_ask: bool = False
    is_again: bool = False


Icon = Literal["disk", "partition", "usb", "keyboard", "camera", "mic", "pci"]


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device. `spoken` is for screen readers, which see neither bold nor icon; `search` is what
    typed letters are looked for in, in folded case. `vms` is None until `Controller.look` has been
    answered for this device. `note` is the last, greyed line of its list of VMs; "" is none."""

    ref: DeviceRef
    text: str
    spoken: str
    bold: bool
    indent: int
    icon: Icon
    search: str
    enabled: bool
    detail: str
    vms: tuple[VmRow, ...] | None
    note: str


@dataclass(frozen=True, slots=True)
class Section:
    """The devices of one class, or, in words, why there are none (`empty`)."""

    device_class: str
    title: str
    rows: tuple[DeviceRow, ...]
    empty: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything. `status` is "" if all is well; otherwise one line says what is not, for example
    that there is no connection and why. `attached` counts devices. `generation` is another one
    whenever anything else is."""

    connected: bool
    status: str
    sections: tuple[Section, ...]
    attached: int
    generation: int


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that a person may want to be told of. `text` is the device in words. `own`: it is
    what the person at this desktop just asked for. `vm` is the VM that the device is attached to,
    that has lost it, or that listens; None where there is none. `family` is the topmost device of
    which this is a part, as a stick is of its disk and partitions; None: it is itself."""

    kind: Literal["appeared", "gone", "attached", "detached", "listening"]
    ref: DeviceRef
    text: str
    vm: str | None
    own: bool
    family: DeviceRef | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a click. Each click has "working" at once and exactly one of the others later,
    or only that one if nothing could be begun. `reason` is a sentence, "" if there is nothing to
    say. `text` is the device in words, "" if there are none but its names."""

    ref: DeviceRef
    vm: str
    verb: Literal["attach", "detach"]
    state: Literal["working", "done", "failed", "denied"]
    reason: str
    text: str = ""
