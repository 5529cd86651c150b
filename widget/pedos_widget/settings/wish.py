"""One assignment, as the service has it or as it is to become; no Qt, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pedos_cli.answers import take
from pedos_cli.devices import assignment_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    #: What tells an assignment of a VM from its others: of two to one port, the later replaces the
    #: earlier.
    Slot = tuple[str, str, str | None, str]

Match = Literal["port", "device", "both"]


@dataclass(frozen=True, slots=True)
class Wish:
    """An assignment to the VM of the window. `device` is None for any port; `identity` is "" for
    any device; `options` are in the order of their names."""

    device_class: str
    backend: str
    device: str | None
    identity: str
    mode: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def slot(self) -> Slot:
        """Its place among the VM's assignments."""
        identity = self.identity if self.device is None else ""
        return self.device_class, self.backend, self.device, identity

    @property
    def match(self) -> Match:
        """What of the device counts."""
        if self.device is None:
            return "device"
        return "both" if self.identity else "port"

    @property
    def name(self) -> str:
        """`SOURCE:ID[:IDENTITY]`, as the commands have it."""
        return assignment_name({"device": self.device, "identity": self.identity}, self.backend)

    def with_option(self, name: str, value: str | None) -> Wish:
        """The same with another value of one option; None is without it."""
        options = {**dict(self.options), name: value}
        given = ((key, each) for key, each in options.items() if each is not None)
        return replace(self, options=tuple(sorted(given)))

    def params(self, vm: str, *, dry_run: bool) -> dict[str, object]:
        """The parameters of `device.assign`. They name what was shown: the service refuses if
        another device is at the port by now."""
        return {
            "device_class": self.device_class,
            "vm": vm,
            "backend": self.backend,
            "device": self.device,
            "identity": self.identity or None,
            "match": self.match,
            "mode": self.mode,
            "options": dict(self.options),
            "dry_run": dry_run,
        }

    def unassign_params(self, vm: str) -> dict[str, object]:
        """The parameters of `device.unassign`."""
        return {
            "device_class": self.device_class,
            "vm": vm,
            "backend": self.backend,
            "device": self.device,
            "identity": self.identity or None,
        }

    def as_answered(self, answer: Mapping[str, object]) -> Wish:
        """The same as the service takes it: it knows which part of an identity lasts, and how
        options are written. ProtocolError for an answer that is none."""
        device = answer.get("device")
        return replace(
            self,
            device=None if device is None else take(answer, "device", str),
            identity=take(answer, "identity", str),
            options=_pairs(take(answer, "options", dict)),
        )


def stored_wish(device_class: str, assigned: Mapping[str, object]) -> Wish:
    """An item of `device.assignments`; ProtocolError if it is none."""
    device = assigned.get("device")
    return Wish(
        device_class,
        take(assigned, "backend", str),
        None if device is None else take(assigned, "device", str),
        take(assigned, "identity", str),
        take(assigned, "mode", str),
        _pairs(take(assigned, "options", dict)),
    )


def _pairs(options: Mapping[object, object]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(name), str(value)) for name, value in options.items()))
