"""`qvm-settings`: the window of a VM's settings as a program of its own.

What does without a window is done as by the other commands, before Qt is imported: help, a bad
command line, a VM that does not exist, a service that does not answer.
"""

from __future__ import annotations

import os
import sys

from pedos_cli.answers import DONE
from pedos_cli.arguments import Parser, UsageError, examples, vm_name
from pedos_cli.devices import TIMEOUT_S, list_assignments
from pedos_cli.run import run
from pedos_protocol.device_classes import CLASSES
from pedos_protocol.errors import CallError

from pedos_widget.lacking import what_to_do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_cli.run import Session

PROG = "qvm-settings"
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
"""What says where a window can be shown; without any, Qt would end the program with a signal."""


def build_parser() -> Parser:
    """Return the parser of `qvm-settings`."""
    parser = Parser(
        prog=PROG,
        description="Show and change which devices a VM is to have, in a window: "
        f"{', '.join(each.many for each in CLASSES)}. The window says what a change would come to "
        "before it is saved. Without a desktop, qvm-device CLASS assign does the same.",
        epilog=examples(
            (f"{PROG} work", "the devices of the VM work"),
            ("qvm-usb list --assignments work", "the same list of USB devices, in a terminal"),
        ),
    )
    parser.add_argument("vm", metavar="VM", help="the VM whose devices are shown")
    parser.set_defaults(verb=open_settings)
    return parser


def open_settings(session: Session) -> int:
    """Show the window until it is closed."""
    vm = vm_name(session.args.vm)
    if vm == "dom0":
        raise UsageError("dom0 gets no devices, so it has no such settings", "qvm-ls")
    # The service knows the VMs that there are, and those that are gone and have assignments.
    list_assignments(
        lambda method, params: session.call(method, params, TIMEOUT_S), CLASSES[0].name, [vm]
    )
    session.close()
    instead = {"hint": f"qvm-device {CLASSES[0].name} list --assignments {vm}"}
    if not any(map(os.environ.get, SCREENS)):
        raise CallError("failed", "there is no screen to show a window on", instead)
    try:
        from pedos_widget.settings.program import show  # noqa: PLC0415  (Qt takes long to import)
    except ImportError as error:
        raise CallError("failed", what_to_do(error), instead) from error
    show(vm, PROG, session.verbosity)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-settings`; returns the exit status."""
    return run(PROG, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
