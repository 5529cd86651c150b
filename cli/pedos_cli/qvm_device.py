"""`qvm-device`, and a program for each class (`qvm-block`) that implies the class."""

from __future__ import annotations

import argparse
import sys
from itertools import takewhile

from pedos_protocol.device_classes import CLASSES, class_named, class_names

from pedos_cli import output
from pedos_cli.answers import DONE
from pedos_cli.arguments import TELLING, Parser, UsageError, examples
from pedos_cli.classes import OF_HEARD, classes_there_are
from pedos_cli.output import show
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from pedos_protocol.device_classes import DeviceClass

    from pedos_cli.run import Session

ACTIONS = {
    "list": ("ls", "l"),
    "info": ("i",),
    "attach": ("at", "a"),
    "detach": ("dt", "d"),
    "assign": ("s",),
    "unassign": ("u",),
    "mute": (),
    "unmute": (),
    "explain": (),
    "watch": (),
}
"""Each action and its aliases."""

WATCH = "watch"
"""The action that needs no class: it is also a command by itself, for all classes."""

IMPLIED_ACTION = "list"

FLAGS = (
    "--all", "--json", "-s", "--assignments", "-p", "--persistent", "--ro", "--force",
    "--auto", "--auto-attach", "--ask", "--ask-to-attach", "-r", "--required",
    "--port", "--only-port", "--device", "--only-device", "--dry-run",
)  # fmt: skip
"""Options of the actions that take no value: the action may stand behind them."""

IDENTITY = "0781:5567:4C530001"
"""An identity in examples."""

TELL_CLASSES = "--list-device-classes"

SUMMARIES = {
    "list": "list devices and who uses them",
    "info": "show all that is known of a device, and what the rules say of it",
    "attach": "attach a device to a VM",
    "detach": "detach one device, or all of the class, from a VM",
    "assign": "have a device attached to a VM at its starts, or whenever both are there",
    "unassign": "take one assignment, or all of the class, from a VM",
    "mute": "have a VM hear nothing of the devices that it has and will get",
    "unmute": "have a muted VM hear its devices again",
    "explain": "show the policy's verdict and the rule that decides",
    "watch": "list devices and VMs, and then every change, until Ctrl-C",
}
DETAILS = {
    "list": " USED BY marks with * the VMs that the device is assigned to. An attachment is left "
    "over while its source, or the toolstack, does not confirm that it has ended, which the "
    "service tries every minute: until then no other VM gets the device. With --json, `left_over` "
    "of an attachment says why, or is null. Of microphones it also says who listens at this "
    "moment, and who is muted: `listening`, `muted` and `unconfirmed` of an attachment, and "
    "`muted` of the list for all VMs that are.",
    "info": " A line of `in rules` is what stands for the device in the column ARGUMENT of a rule. "
    "A device that is attached or assigned cannot be lent beside those that hold the same data. In "
    "a VM, nothing of rules and of other VMs is shown.",
    "attach": " A device that a VM should get again and again is assigned: see assign.",
    "assign": " Without --port or --device, the assignment is to the device that is there now, at "
    "the port where it is now: another device there is not attached, nor the device elsewhere. The "
    "most specific assignment of a device counts; two that are as specific attach it to none. The "
    "lines that begin with now show what would happen at this moment, whether the assignment is "
    "made or not.",
    "mute": " The devices stay attached, and programs that record get silence. It lasts until "
    "unmute, also for what the VM gets later and after restarts. If a source does not confirm that "
    "it is so, that is said, the exit status is not 0, and the VM may still hear: detach it then.",
    "unassign": " What the VM has stays attached until it is detached.",
    "watch": " A line that begins with present, added, changed or removed goes on as a line of "
    "list does; one that begins with vm goes on as a line of qvm-ls does, and says what has "
    "happened to the VM. In a VM, only its own devices and those that it has are shown, and no "
    "VMs. If the service goes away, the command waits for it and then shows what is different.",
}


def build_parser(
    device_class: str | None = None,
    shown_class: DeviceClass | None = None,
    only: str | None = None,
) -> Parser:
    """Return the parser of `qvm-device`, or of `qvm-CLASS` if `device_class` is given.

    `shown_class` is the class on the command line, for help and examples. `only` is the action on
    the command line: to save time, the parsers of the others are not made.
    """
    prog = f"qvm-{device_class}" if device_class else "qvm-device"
    known = device_class or (shown_class.name if shown_class else None)
    example = shown_class or class_named(device_class) or CLASSES[0]
    command = prog if device_class else f"{prog} {example.name}"
    inner = prog if device_class else f"{prog} {known or 'DEVICE_CLASS'}"
    device = example.example_device
    what = f"{known} devices" if known else f"devices ({', '.join(class_names())})"
    parser = Parser(
        prog=prog,
        description=f"List, attach, detach, assign and watch {what}. Without an action, list is "
        "implied." + ("" if device_class else f" `{prog} {WATCH}` watches all classes."),
        epilog=examples(
            (command, "list the devices"),
            (f"{command} attach work {device}", "attach a device to the VM work"),
            (f"{command} detach work", "detach everything of this class from work"),
            (f"{command} assign work {device}", "have it attached whenever both are there"),
        ),
    )
    if device_class is None:
        parser.add_argument(
            "device_class", metavar="DEVICE_CLASS",
            choices=tuple(dict.fromkeys((*class_names(), example.name))),
            help="one of: " + ", ".join(class_names()),
        )  # fmt: skip
        parser.add_argument(
            TELL_CLASSES, action="store_true",
            help="show the device classes, one per line or as --json, and exit",
        )  # fmt: skip
        parser.instead = {WATCH: build_watch_parser}
    else:
        parser.set_defaults(device_class=device_class)
    parser.set_defaults(command=command, described=example)
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", dest="action", required=True, prog=inner
    )
    for action in (only,) if only else actions_of(example if known else None):
        module = _module(action)
        summary = SUMMARIES[action]
        leaf = actions.add_parser(
            action,
            aliases=ACTIONS[action],
            help=summary,
            description=f"{_sentence(summary)}{DETAILS.get(action, '')}",
            epilog=_examples(action, command, example),
            level=2,
        )
        module.add_arguments(leaf)
        leaf.set_defaults(action=action, help_command=f"{inner} {action} --help")
    return parser


def actions_of(described: DeviceClass | None) -> tuple[str, ...]:
    """Return the actions of a class, or of any."""
    if described is None or described.heard:
        return tuple(ACTIONS)
    return tuple(action for action in ACTIONS if action not in OF_HEARD)


def build_watch_parser() -> Parser:
    """Return the parser of `qvm-device watch`."""
    from pedos_cli import device_watch  # noqa: PLC0415

    command = f"qvm-device {WATCH}"
    parser = Parser(
        prog=command,
        description=_sentence(SUMMARIES[WATCH]) + DETAILS[WATCH],
        epilog=_examples(WATCH, "qvm-device", CLASSES[0]),
        level=1,
    )
    parser.add_argument(
        "device_class", metavar="DEVICE_CLASS", nargs="?",
        help="devices of this class only (" + ", ".join(class_names()) + ")",
    )  # fmt: skip
    device_watch.add_arguments(parser)
    parser.set_defaults(action=WATCH, command="qvm-device", help_command=f"{command} --help")
    return parser


def _watch_words(argv: Sequence[str]) -> list[str] | None:
    """Return the words beside `watch`, if it stands in the place of the class."""
    first = next((word for word in argv if not word.startswith("-")), None)
    if first != WATCH:
        return None
    place = list(argv).index(WATCH)
    return [*argv[:place], *argv[place + 1 :]]


def _parse_watch(words: Sequence[str]) -> argparse.Namespace:
    args = build_watch_parser().parse_args(words)
    if args.device_class is not None:
        args.command += f" {_known_class(args.device_class).name}"
    else:
        args.command += f" {CLASSES[0].name}"
    return args


def parse(argv: Sequence[str], device_class: str | None = None) -> argparse.Namespace:
    """Return the checked arguments; raises UsageError, or SystemExit after showing help."""
    told = next((word for word in argv if word in TELLING or _asks_for_help(word)), None)
    if told == TELL_CLASSES and device_class is None:  # whatever else the command line says
        return argparse.Namespace(verb=_tell_classes, json="--json" in argv)
    if device_class is None and (words := _watch_words(argv)) is not None:
        return _parse_watch(words)
    words, shown_class, action = complete_words(argv, device_class)
    return build_parser(device_class, shown_class, action).parse_args(words)


def complete_words(
    argv: Sequence[str], device_class: str | None
) -> tuple[list[str], DeviceClass | None, str | None]:
    """Return the words with the implied action inserted, and the class and the action that they
    name.

    Raises UsageError for an unknown class or action. The options that may stand before the action
    take no value, so the first word without a hyphen is the class and the second is the action.
    """
    prog = f"qvm-{device_class}" if device_class else "qvm-device"
    words = list(argv)
    found = class_named(device_class)
    for place, word in enumerate(words):
        if word in TELLING or _asks_for_help(word):
            return words, found, None
        if word.startswith("-") and (found is None or _is_global(word)):
            continue
        if found is None:
            found = _known_class(word)
        elif word.startswith("-"):
            flags = list(takewhile(lambda each: each in FLAGS or _is_global(each), words[place:]))
            rest = words[place + len(flags) :]
            if rest and (action := _action(rest[0])) is not None:
                _check_has(action, found)
                return [*words[:place], action, *flags, *rest[1:]], found, action
            return [*words[:place], IMPLIED_ACTION, *words[place:]], found, IMPLIED_ACTION
        else:
            command = prog if device_class else f"{prog} {found.name}"
            return words, found, _known_action(word, command, found)
    if found is None:
        raise UsageError(
            "no device class is given: it is the first argument, one of "
            + ", ".join(class_names()),
            f"{prog} {class_names()[0]} list",
        )
    return [*words, IMPLIED_ACTION], found, IMPLIED_ACTION


def _is_global(word: str) -> bool:
    return word in ("--verbose", "--quiet") or (
        len(word) > 1 and word[0] == "-" and set(word[1:]) <= set("vqh")
    )


def _known_class(word: str) -> DeviceClass:
    if (known := class_named(word)) is not None:
        return known
    classes = classes_there_are()
    if (known := class_named(word, classes)) is not None:
        return known
    names = ", ".join(each.name for each in classes)
    raise UsageError(
        f"'{show(word, 64)}' is no device class: the classes are {names}",
        f"qvm-device {class_names()[0]} list",
    )


def _asks_for_help(word: str) -> bool:
    return _is_global(word) and "h" in word


def _tell_classes(session: Session) -> int:
    names = [each.name for each in classes_there_are()]
    if session.args.json:
        output.put_json({"device_classes": names})
    else:
        for name in names:
            output.put(name)
    return DONE


def _action(word: str) -> str | None:
    names = ((action, (action, *aliases)) for action, aliases in ACTIONS.items())
    return next((action for action, known in names if word in known), None)


def _check_has(action: str, described: DeviceClass) -> None:
    if action not in actions_of(described):
        raise UsageError(
            f"{described.many} are nothing to listen to, so there is no {action}",
            f"qvm-device {_heard_class().name} {action} --help",
        )


def _heard_class() -> DeviceClass:
    return next(each for each in CLASSES if each.heard)


def _known_action(word: str, command: str, described: DeviceClass) -> str:
    if (action := _action(word)) is not None:
        _check_has(action, described)
        return action
    names = ", ".join(actions_of(described))
    raise UsageError(
        f"'{show(word, 64)}' is no action: the actions are {names}; "
        "to list the devices of a VM, name the action list",
        f"{command} list {show(word, 64)}",
    )


def _module(action: str) -> ModuleType:
    """Return the module of the action; to save time, the others are not imported."""
    module: ModuleType
    if action == "list":
        from pedos_cli import device_list  # noqa: PLC0415

        module = device_list
    elif action == "info":
        from pedos_cli import device_info  # noqa: PLC0415

        module = device_info
    elif action == "attach":
        from pedos_cli import device_attach  # noqa: PLC0415

        module = device_attach
    elif action == "detach":
        from pedos_cli import device_detach  # noqa: PLC0415

        module = device_detach
    elif action == "assign":
        from pedos_cli import device_assign  # noqa: PLC0415

        module = device_assign
    elif action == "unassign":
        from pedos_cli import device_unassign  # noqa: PLC0415

        module = device_unassign
    elif action in OF_HEARD:
        from pedos_cli import device_mute  # noqa: PLC0415

        module = device_mute
    elif action == WATCH:
        from pedos_cli import device_watch  # noqa: PLC0415

        module = device_watch
    else:
        from pedos_cli import device_explain  # noqa: PLC0415

        module = device_explain
    return module


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _examples(action: str, command: str, example: DeviceClass) -> str:
    if action not in actions_of(example):
        example = _heard_class()
        command = f"qvm-device {example.name}"
    device = example.example_device
    option = f" -o {example.options[0].shown_example}" if example.options else ""
    lines = {
        "list": (
            (f"{command} list", "every device of the class"),
            (f"{command} list work", "the devices in work, and those attached to it"),
            (f"{command} list --all --exclude vault", "all devices except those of vault"),
            (f"{command} list --json", "the same for programs"),
            (f"{command} list --assignments", "which VM is to have which device"),
        ),
        "info": (
            (f"{command} info {device}", "what it is, and who may have it"),
            (f"{command} info", "the same of each device of the class"),
            (f"{command} info --json {device}", "the same for programs"),
        ),
        "attach": (
            (f"{command} attach work {device}{option}", "attach it until it is detached"),
            (f"{command} attach --persistent work {device}", "also at every start of work"),
            (f"{command} attach work {device}:{IDENTITY}", "only if it is this device"),
        ),
        "detach": (
            (f"{command} detach work {device}", "this one device"),
            (f"{command} detach work {device}:{IDENTITY}", "only if it is this device"),
            (f"{command} detach work", "every device of the class"),
            (f"{command} detach --force work {device}", "although work uses it (in dom0)"),
        ),
        "assign": (
            (f"{command} assign work {device}{option}", "this device, at this port"),
            (f"{command} assign --device work {device}", "this device, at whatever port it is"),
            (
                f"{command} assign --port --ask work {device}",
                "what is plugged in there, if you agree",
            ),
            (f"{command} assign --required work {device}", "work does not start without it"),
            (
                f"{command} assign work '{example.source}:*:{IDENTITY}'",
                "a device that need not be there now",
            ),
            (f"{command} assign --dry-run work {device}", "what would happen now"),
        ),
        "unassign": (
            (f"{command} unassign work {device}", "what is assigned by this port"),
            (f"{command} unassign --device work {device}", "what is assigned by its identity"),
            (f"{command} unassign work", "every assignment of the class"),
        ),
        "explain": (
            (f"{command} explain work {device}", "may it be attached to work, and why"),
            (f"{command} explain -v work {device} --verb detach", "with every rule that was tried"),
            (f"{command} explain work {device} --as work", "what a user in work would see"),
        ),
        "mute": (
            (f"{command} mute work", "work hears nothing until it is unmuted"),
            (f"{command} list work", "whether it is muted, and whether it listens"),
        ),
        "unmute": ((f"{command} unmute work", "work hears what it has again"),),
        WATCH: (
            (f"{command} {WATCH}", "now, and whenever something changes"),
            (f"{command} {WATCH} --json", "the same for programs, one object per line"),
        ),
    }
    return examples(*lines[action])


def _main(device_class: str | None, argv: Sequence[str] | None) -> int:
    return run(
        f"qvm-{device_class}" if device_class else "qvm-device",
        lambda: build_parser(device_class),
        argv,
        lambda words: parse(words, device_class),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-device`; returns the exit status."""
    return _main(None, argv)


def main_block(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-block`; returns the exit status."""
    return _main("block", argv)


def main_usb(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-usb`; returns the exit status."""
    return _main("usb", argv)


def main_pci(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-pci`; returns the exit status."""
    return _main("pci", argv)


def main_mic(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-mic`; returns the exit status."""
    return _main("mic", argv)


if __name__ == "__main__":
    sys.exit(main())
