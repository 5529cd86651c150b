"""An assignment, and which of several decides where a device goes. No I/O here, and no clock.

An assignment is to whatever is at a port (`PORT`), to the device with an identity at any port of
its source (`DEVICE`), or to that device at that port (`BOTH`). Of those that are to a device now,
the most specific decide. Where they do not agree, no VM gets the device by itself: two assignments
that are equally specific, to different VMs, are a mistake that only a person can correct, and so
are two devices with the one identity that is assigned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from pedos_protocol.frozen import frozen

from pedos_dom0.tables.device_set import DeviceKey

if TYPE_CHECKING:
    from pedos_protocol.messages import Match, Mode

# The `device` of the key of an assignment that is to an identity at any port. It is no id of a
# device, so no such key is that of one.
ANY_PORT = ""
# How specific assignments are.
PORT, DEVICE, BOTH = 1, 2, 3
MATCHES: dict[int, Match] = {PORT: "port", DEVICE: "device", BOTH: "both"}
# Others that a sentence names; the rest is counted.
NAMED_MAX = 4

#: What a VM has at most one assignment to: a port, or an identity at any port.
Slot = tuple[DeviceKey, str]


@frozen
class Assignment:
    """`key` is to be given to `vm`, if it is the device with that identity
    (DeviceClass.lasting_identity; "" is any), and the VM was not removed since (`orphaned`).

    `uuid` is that of the VM that it was made for; None while that is not known.
    """

    vm: str
    key: DeviceKey
    options: Mapping[str, str]
    identity: str = ""
    orphaned: bool = False
    uuid: str | None = None
    mode: Mode = "required"

    @property
    def slot(self) -> Slot:
        return slot(self.key, self.identity)

    @property
    def weight(self) -> int:
        """How specific it is."""
        if self.key.device == ANY_PORT:
            return DEVICE
        return BOTH if self.identity else PORT

    @property
    def match(self) -> Match:
        return MATCHES[self.weight]

    def fits(self, key: DeviceKey, identity: str) -> bool:
        """Whether it is to the device at `key`, which has this lasting identity."""
        if (self.key.device_class, self.key.backend) != (key.device_class, key.backend):
            return False
        return self.key.device in (ANY_PORT, key.device) and self.identity in ("", identity)

    def __str__(self) -> str:
        """As the argument of a rule: `sys-usb:1-2`, `sys-usb:*:IDENTITY`."""
        if self.key.device == ANY_PORT:
            return f"{self.key.backend}:*:{self.identity}"
        return str(self.key)


def slot(key: DeviceKey, identity: str) -> Slot:
    """What an assignment to that port, or to that identity at any port, takes the place of."""
    return (key, identity if key.device == ANY_PORT else "")


@frozen
class Claim:
    """The assignments to one device, and what they come to.

    `first` are the most specific ones, `others` the rest. `twins` are further devices with the
    identity to which the first are, if they are to it at any port: the few that a sentence names,
    as a source can have thousands and each of them has a claim. `twins_left_out` are not among
    them.
    """

    key: DeviceKey
    first: tuple[Assignment, ...] = ()
    others: tuple[Assignment, ...] = ()
    twins: tuple[DeviceKey, ...] = ()
    twins_left_out: int = 0

    @property
    def winner(self) -> Assignment | None:
        """The one that decides; None if there is none, or no agreement."""
        return self.first[0] if len(self.first) == 1 and not self.twins else None

    def is_for(self, vm: str) -> bool:
        """Whether that VM may start with the device: several VMs may require one, of which the
        first that starts has it."""
        return not self.twins and any(each.vm == vm for each in self.first)

    @property
    def is_left_to_starts(self) -> bool:
        """Whether several VMs require the device, of which the first that starts has it."""
        return not self.twins and all(each.mode == "required" for each in self.first)

    @property
    def conflict(self) -> str | None:
        """Why no VM gets the device by itself; None if one does, or none is to."""
        if self.twins:
            keys, most = sorted((self.key, *self.twins)), self.first[0]
            they = named(map(str, keys), self.twins_left_out)
            return f"{they} have the identity {most.identity}"
        if len(self.first) > 1:
            vms = named(each.vm for each in self.first)
            return f"the assignments of {self.key} to {vms} are equally specific"
        return None


def claim(
    key: DeviceKey,
    identity: str,
    assignments: Iterable[Assignment],
    same_identity: Collection[DeviceKey] = (),
) -> Claim:
    """What `assignments` come to for the device at `key` with this lasting identity.

    `same_identity` are all devices of its class and source that have it, with or without this one;
    a set, or the like, as it may be large.
    """
    fitting = sorted(
        (each for each in assignments if each.fits(key, identity)),
        key=lambda each: (-each.weight, each.vm, each.slot),
    )
    if not fitting:
        return Claim(key)
    most = fitting[0].weight
    count = sum(each.weight == most for each in fitting)
    twins: tuple[DeviceKey, ...] = ()
    left_out = 0
    if most == DEVICE:
        further = (each for each in same_identity if each != key)
        twins = tuple(sorted(islice(further, NAMED_MAX)))
        left_out = len(same_identity) - (key in same_identity) - len(twins)
    return Claim(key, tuple(fitting[:count]), tuple(fitting[count:]), twins, left_out)


def named(names: Iterable[str], left_out: int = 0) -> str:
    """`a and b`, `a, b and c`; of very many the first, and how many there are beside them, with
    those that were `left_out`."""
    names = list(names)
    if len(names) + left_out > NAMED_MAX:
        left_out += len(names) - len(names[:NAMED_MAX])
        names = [*names[:NAMED_MAX], f"{left_out} more"]
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
