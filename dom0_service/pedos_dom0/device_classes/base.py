"""The interface between dom0's service and its device classes: what differs from class to class.

`DeviceClass` derives everything from a class's description (`pedos_protocol`). A class with a rule
of its own overrides that; no other part of the service knows how. How devices get from domain to
domain is not here: that is a driver's carrier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.device_classes import FALSE, TRUE, YES_OR_NO
from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen
from pedos_protocol.names import SHOWN_MAX, harmless_text, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pedos_protocol.device_classes import DeviceClass as Description
    from pedos_protocol.device_classes import Option
    from pedos_protocol.messages import Device

READ_ONLY = "read-only"
# More values than this are a series of names, of which the first and the last are shown.
_SHOWN_VALUES = 4


@frozen
class Options:
    """The options of an attach, checked. None: left open.

    `asked` is the request's options, as an assignment stores them and lists show them. `frontend`
    is the requested name of the device in its target.
    """

    asked: Mapping[str, str] = attrs.field(factory=dict)
    read_only: bool | None = None
    frontend: str | None = None

    def canonical(self) -> dict[str, str]:
        """A copy of `asked`."""
        return dict(self.asked)


class DeviceClass:
    """A device class, as dom0's service sees it."""

    #: Whether this dom0 has the class. Another version may have left attachments and assignments of
    #: one that it has not.
    is_known = True
    #: The plural noun for devices that have a name each in the target.
    named = "devices"
    #: The options that weaken what protects dom0, or other VMs: for dom0's user alone.
    for_dom0: frozenset[str] = frozenset()

    def __init__(self, description: Description) -> None:
        self.description = description

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def shared(self) -> bool:
        """Whether several VMs may have one device at once."""
        return self.description.shared

    @property
    def name_option(self) -> str:
        """The option that names a device in its target; "" if devices have no names there."""
        return self.description.name_option

    @property
    def names(self) -> tuple[str, ...]:
        """All names that devices may have in a target; none if they have no names."""
        return self.description.names

    def wrong_name(self, name: str | None) -> str | None:
        """What is wrong with what a target's agent calls a device; None if nothing is."""
        if self.description.may_be_called(name):
            return None
        if name is None:
            return "the name is missing"
        return f"no {self.description.one} is called {shown(name)} there"

    #: Whether attachments stay while the machine sleeps. Others end before it (requests/sleep.py).
    survives_sleep = True

    # Options

    def parse_options(self, raw: Mapping[str, str]) -> Options:
        """Checks the options of an attach; raises CallError(usage) that names the known ones."""
        found: dict[str, str] = {}
        for name, value in raw.items():
            option = self._option(name)
            if option.values == YES_OR_NO:
                is_known = value.lower() in (*TRUE, *FALSE)
            else:
                is_known = value in option.values
            if not is_known:
                right = _values(option, " or ", "a name from {} to {}")
                raise usage(f"option {name} cannot be '{_show(value)}': it is {right}")
            found[name] = option.canonical(value)
        in_order = sorted(self.description.options, key=lambda each: each.name != self.name_option)
        asked = {
            each.name: found[each.name]
            for each in in_order
            if each.name in found and found[each.name] != each.default
        }
        read_only = None if READ_ONLY not in found else found[READ_ONLY] == "yes"
        return Options(asked, read_only, self.asked_name(found))

    def check_asker(self, options: Options, *, is_dom0: bool) -> None:
        """CallError(usage) if a VM asks with an option that is not for VMs."""
        refused = sorted(self.for_dom0.intersection(options.asked))
        if refused and not is_dom0:
            raise usage(f"only dom0's user can ask for {' and '.join(refused)}")

    def _option(self, name: str) -> Option:
        option = self.description.option(name)
        if option is not None:
            return option
        if not self.description.options:
            raise usage(f"{self.name} devices take no options, so not '{_show(name)}'")
        known = ", ".join(
            f"{each.name}={_values(each, '|', '{}..{}')}" for each in self.description.options
        )
        raise usage(f"unknown option '{_show(name)}'; known for {self.name}: {known}")

    def granted(self, options: Options, *, read_only: bool) -> dict[str, str]:
        """Options for an attachment that is read-only or not, by option or by rule."""
        made = {}
        if read_only or self.description.option(READ_ONLY) is not None:
            made[READ_ONLY] = "yes" if read_only else "no"
        apart = (READ_ONLY, self.name_option)
        return made | {name: value for name, value in options.asked.items() if name not in apart}

    def asked_name(self, options: Mapping[str, str]) -> str | None:
        """The name in the target that canonical options ask for; None if they leave it open."""
        return options.get(self.name_option)

    def in_effect(self, options: Mapping[str, str], name: str | None) -> dict[str, str]:
        """The options of an attachment as it is: the requested ones, and its name."""
        return {**options, **({self.name_option: name} if name and self.name_option else {})}

    # What can be lent

    def why_never(self, backend: str, device: Device) -> str | None:
        """Why no VM can ever be given a device of that VM; None if one can."""
        return None

    # A VM's report

    def borrowed(self, ids: Iterable[str], names: Collection[str]) -> set[str]:
        """The reported devices that are not the VM's own: those that it has borrowed under these
        names, if its agent cannot tell."""
        return set()

    def lasting_identity(self, identity: str | None) -> str:
        """The part of an identity that distinguishes a device from a later one with the same id; ""
        if none does. An assignment is for the device that has it."""
        return identity or ""

    def parent(self, device: Device) -> tuple[str, str] | None:
        """Class and id of the device that this one is a part of, in the same VM; None if it is
        whole. The two exclude each other, like a disk and its partition."""
        if device.parent is None:
            return None
        return (device.parent_class or self.name, device.parent)


def usage(message: str) -> CallError:
    """The request's options contradict each other."""
    return CallError("usage", message)


def _values(option: Option, between: str, row: str) -> str:
    values = option.values
    if len(values) <= _SHOWN_VALUES:
        return between.join(values)
    return row.format(min(values), max(values))


def _show(text: str) -> str:
    return harmless_text(text, SHOWN_MAX)
