"""The device classes, as plain data: what a person and a program need to know of each.

One entry per class. Help, completion, questions and the parsing of options are made from it;
nothing else repeats the name or the options of a class. How its devices are handled is not here:
dom0 and the agent have a part for each class.

A dom0 that is newer or older than its client may have other classes. It describes its own in the
same form (`device.classes`).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from collections.abc import Iterable

CLASS_NAME_MAX = 16  # characters; it is part of a service's name and of a program's (qvm-block)
CLASSES_MAX = 16  # of one dom0: four times the present number
OPTIONS_MAX = 16  # of one attachment; block knows three
OPTION_NAME_MAX = 32  # characters; the longest known one has twelve
OPTION_VALUE_MAX = 256  # characters
VALUES_MAX = 32  # of one option; the names of frontends are 22

#: The verbs of a device's services: `device.attach.block` is one. The rule for `list` decides what
#: is visible, those for the others what is allowed.
VERBS = ("list", "attach", "detach", "assign")

TRUE = ("yes", "true", "on", "1")
FALSE = ("no", "false", "off", "0")
YES_OR_NO = ("yes", "no")

#: The names that a lent block device may have in its VM. xvda to xvdd are the VM's own disks (root,
#: private, volatile, kernel modules). xvdi comes first, as PedOS has always numbered lent disks
#: from there.
FRONTENDS = tuple(f"xvd{letter}" for letter in "ijklmnopqrstuvwxyzefgh")

#: The class that messages are about which name none: older programs lend and borrow disks alone.
UNNAMED = "block"

_LOWER = "abcdefghijklmnopqrstuvwxyz"


class Option:
    """An option of an attach, `-o NAME=VALUE`.

    `values` are the allowed ones, in their stored and displayed form. `default` is the value in
    effect if the option is not given, if it is the same for all devices. `example` is a value to
    show in help.
    """

    __slots__ = ("default", "example", "name", "values")

    def __init__(
        self, name: str, values: tuple[str, ...], *, example: str, default: str | None = None
    ) -> None:
        self.name = name
        self.values = values
        self.example = example
        self.default = default

    @property
    def shown_example(self) -> str:
        """`read-only=yes`"""
        return f"{self.name}={self.example}"

    def canonical(self, value: str) -> str:
        """`value` in its stored and displayed form: `yes` and `no` have other words, in any
        case."""
        if self.values == YES_OR_NO:
            return "yes" if value.lower() in TRUE else "no"
        return value


class DeviceClass:
    """A device class.

    `one` and `many` are a person's words for its devices: "USB device", "USB devices". `example` is
    the id of one, as in SOURCE:ID, and `source` a VM that may well have it.
    `shared`: several VMs may have one at once. `live`: one can be given to any VM that runs.
    `written`: a VM that has one may change what is on it, unless it has it read-only.
    `kind_letter` is what its kinds of interfaces begin with (see `kinds`); "" if it has none.
    `heard`: its source says who listens to it, and dom0's user can mute a VM for it.
    `name_option` is the option that names a device in its VM; "" if they have no names there, or
    `names_itself`: its kernel calls them as it likes.
    """

    __slots__ = (
        "example", "heard", "kind_letter", "live", "many", "name", "name_option", "names_itself",
        "one", "options", "shared", "source", "written",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        one: str,
        many: str,
        source: str,
        example: str,
        shared: bool = False,
        live: bool = True,
        written: bool = False,
        heard: bool = False,
        options: tuple[Option, ...] = (),
        kind_letter: str = "",
        name_option: str = "",
        names_itself: bool = False,
    ) -> None:
        self.name = name
        self.one = one
        self.many = many
        self.source = source
        self.example = example
        self.shared = shared
        self.live = live
        self.written = written
        self.heard = heard
        self.options = options
        self.kind_letter = kind_letter
        self.name_option = name_option
        self.names_itself = names_itself

    @property
    def example_device(self) -> str:
        """SOURCE:ID of a device that may well exist."""
        return f"{self.source}:{self.example}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names that its devices may have in a VM that was lent them; none if they have no
        names there."""
        option = self.option(self.name_option)
        return () if option is None else option.values

    def may_be_called(self, name: str | None) -> bool:
        """Whether a lent device can be called that in its VM; None is no name."""
        if self.names_itself:
            return True
        return name in self.names if self.names else name is None

    def option(self, name: str) -> Option | None:
        """The option of that name; None if the class has no such."""
        return next((each for each in self.options if each.name == name), None)


#: The classes of this version, in the order of the documentation: the one table. It is a list, so
#: that adding a class to it makes the class known to all that read the table.
CLASSES = [
    DeviceClass(
        "block",
        one="block device",
        many="block devices",
        source="sys-usb",
        example="stick.img",
        written=True,
        options=(
            Option("read-only", YES_OR_NO, example="yes"),
            Option("frontend-dev", FRONTENDS, example="xvdj"),
            Option("devtype", ("disk", "cdrom"), example="cdrom", default="disk"),
        ),
        name_option="frontend-dev",
    ),
    DeviceClass(
        "usb",
        one="USB device",
        many="USB devices",
        source="sys-usb",
        example="1-2",
        kind_letter="u",
    ),
    DeviceClass(
        "pci",
        one="PCI device",
        many="PCI devices",
        source="dom0",
        example="00_1b.0",
        live=False,
        options=(
            Option("no-strict-reset", YES_OR_NO, example="yes", default="no"),
            Option("permissive", YES_OR_NO, example="yes", default="no"),
            Option("give-back", YES_OR_NO, example="yes", default="no"),
        ),
        kind_letter="p",
        names_itself=True,
    ),
    DeviceClass(
        "mic",
        one="microphone device",
        many="microphones",
        source="dom0",
        example="mic",
        shared=True,
        heard=True,
    ),
]


def class_names() -> tuple[str, ...]:
    """The names of all classes."""
    return tuple([each.name for each in CLASSES])


def class_named(name: str | None, classes: Iterable[DeviceClass] = CLASSES) -> DeviceClass | None:
    """The class of that name among `classes`; None if there is no such."""
    for each in classes:  # no generator: policy asks this for every request
        if each.name == name:
            return each
    return None


def is_class_name(text: str) -> bool:
    """Could `text` be a class of another version: 1 to 16 lower-case letters?"""
    return 0 < len(text) <= CLASS_NAME_MAX and not text.strip(_LOWER)


def services(verbs: Iterable[str] = VERBS, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """The services of these verbs for these classes, or for all: `device.attach.block`."""
    names = class_names() if names is None else tuple(names)
    return tuple(f"device.{verb}.{name}" for verb in verbs for name in names)
