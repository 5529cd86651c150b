"""`qvm-sleep`: detaches what does not survive the machine's sleep, and attaches it again."""

from __future__ import annotations

import argparse
import sys

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, FAILED, take, take_maps
from pedos_cli.arguments import Parser, examples
from pedos_cli.run import run
from pedos_cli.timeouts import RESUME_S, SUSPEND_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_cli.run import Session

PROG = "qvm-sleep"
SECONDS_MAX = 3600


def build_parser() -> Parser:
    """Return the parser of `qvm-sleep`."""
    parser = Parser(
        prog=PROG,
        description="Detach the USB devices of VMs before the machine sleeps, and attach them "
        "again after it. systemd runs this (pedos-dom0-sleep.service); it is for dom0 alone. A "
        "device that a VM uses stays attached. What was detached is remembered until it is "
        "attached again, also if dom0's service or the resume fails.",
        epilog=examples(
            (f"{PROG} suspend", "before the sleep"),
            (f"{PROG} resume", "after it, or again for what has not come back"),
        ),
    )
    parser.add_argument(
        "when", metavar="suspend|resume", choices=("suspend", "resume"),
        help="what to do: before the sleep, or after it",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", metavar="N", type=_seconds,
        help="wait so long at most; dom0's service goes on with it all the same",
    )  # fmt: skip
    parser.set_defaults(verb=sleep)
    return parser


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:9]) <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to {SECONDS_MAX}")
    return int(text)


def sleep(session: Session) -> int:
    """Do the half that is wanted; returns the status of the first device that it fails for."""
    when = session.args.when
    what = "the detach before the sleep" if when == "suspend" else "the attach after the sleep"
    seconds = session.args.seconds or (SUSPEND_S if when == "suspend" else RESUME_S)
    try:
        answer = session.operate(f"devices.{when}", {}, seconds, what, "qvm-usb list")
    except CallError as error:
        if error.code != "timeout":
            return session.fail(error)
        session.note(f"{what} takes longer than {seconds:g} s: it goes on; see: qvm-usb list")
        return FAILED
    status = DONE
    for item in take_maps(answer, "results"):
        failed = _tell(session, item, when)
        status = status or failed
    if more := take(answer, "left_out", int):
        session.note(f"and {more} more, see: qvm-audit show {take(answer, 'request', str)}")
    return status


def _tell(session: Session, item: Mapping[str, object], when: str) -> int:
    """Print what became of one device and return its status."""
    device = f"{take(item, 'backend', str)}:{take(item, 'device', str)}"
    vm = take(item, "vm", str)
    if item.get("error") is None:
        done = f"detached from {vm} for the sleep" if when == "suspend" else f"attached to {vm}"
        session.say(f"{device} {done}")
        return DONE
    error = take(item, "error", dict)
    words = take(error, "message", str)
    if when == "suspend":
        words = f"{device} stays attached to {vm} in the sleep, and may not work after it: {words}"
    else:
        words = f"{device} is not attached to {vm} again: {words}"
    data = take(error, "data", dict)
    if item.get("again"):
        data = {"hint": f"{PROG} resume tries again"}
    return session.fail(CallError(take(error, "code", str), words, data))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-sleep`; returns the exit status."""
    return run(PROG, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
