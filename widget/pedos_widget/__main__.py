"""The program `pedos-widget`: its command line. Everything else is loaded when it is needed, so
that its manual is made without Qt."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pedos_host import logs
from pedos_host.arguments import Parser
from pedos_protocol import VERSION

from pedos_widget.lacking import what_to_do

PROG = "pedos-widget"

FAILED = 1
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


def make_parser() -> argparse.ArgumentParser:
    """The parser of `pedos-widget`."""
    parser = Parser(
        prog=PROG,
        description="Shows an icon in the desktop's tray. A click on it lists block devices, "
        "microphones and USB devices with the VM that has each; hovering over a device lists the "
        "running VMs, and a click on one attaches it. Questions of the policy appear as dialogs, "
        "and what happens to devices as notifications. One such program runs in a session: a "
        "second one shows the menu of the first and ends with exit status 3.",
        epilog="examples:\n"
        f"  {PROG}\n      run, as the session's autostart does\n"
        f"  {PROG} --show\n      open the menu; for a keyboard shortcut of the desktop\n"
        f"  {PROG} --window\n      use a window in place of the menu",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="open the menu, of the one that runs already if there is one; the exit status is then "
        "0",
    )
    parser.add_argument(
        "--window",
        action="store_true",
        help="show the devices in a window; this is the default where the desktop has no tray, and "
        "on Wayland without XWayland",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the socket of dom0's service (default: $PEDOS_SOCKET, else the one that this user "
        "may connect to)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the widget; the exit status is 0 after Quit or a signal."""
    args = make_parser().parse_args(arguments)
    logs.set_up(PROG, verbose=args.verbose)
    log = logging.getLogger("pedos_widget")
    if not any(os.environ.get(name) for name in _SCREENS):
        # Qt would end the program with a signal.
        log.error("there is no screen: start it in a desktop session, where DISPLAY is set")
        return FAILED
    if args.socket is not None:  # also for the programs that a window starts
        os.environ["PEDOS_SOCKET"] = str(args.socket.absolute())
    # An ordinary window of Wayland cannot be placed beside the tray's icon; under XWayland it can.
    os.environ.setdefault("QT_QPA_PLATFORM", "xcb;wayland")
    try:
        from pedos_widget import app  # noqa: PLC0415
    except ImportError as error:
        log.error("%s", what_to_do(error))
        return FAILED
    return app.run(show=args.show, window=args.window)


if __name__ == "__main__":
    sys.exit(main())
