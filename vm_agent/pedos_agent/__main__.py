"""The program `pedos-agent`: arguments, logging, and one trio run."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from pedos_protocol.names import is_vm_name
from pedos_vchan import logs

from .agent import run_until_signal
from .settings import Settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pedos-agent",
        description="Finds, lends and borrows the devices of one VM, as dom0 tells it.",
    )
    parser.add_argument("--driver", choices=["local"], required=True, help="kind of hypervisor")
    parser.add_argument("--vm", required=True, metavar="NAME", help="name of this VM")
    parser.add_argument("--domid", required=True, type=int, metavar="N", help="its domain number")
    parser.add_argument("--vchan", required=True, type=Path, metavar="DIR", help="channels")
    parser.add_argument(
        "--socket", required=True, type=Path, metavar="PATH", help="for the VM's command line"
    )
    parser.add_argument(
        "--devices", required=True, type=Path, metavar="DIR", help="a file here is a device"
    )
    parser.add_argument(
        "--dev", required=True, type=Path, metavar="DIR", help="where borrowed devices appear"
    )
    parser.add_argument(
        "--control-socket", type=Path, metavar="PATH", help="only for dom0's own agent"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def _settings(arguments: Sequence[str] | None) -> tuple[Settings, bool]:
    parser = _parser()
    args = parser.parse_args(arguments)
    if not is_vm_name(args.vm):
        parser.error(
            f"--vm: {args.vm!r} is not a VM name: a letter, then letters, digits, '_', '-'"
        )
    if args.domid < 0 or (args.domid == 0) != (args.control_socket is not None):
        parser.error("--domid 0 goes with --control-socket (dom0's own agent), others go without")
    # Absolute, but not resolved: a symlink is followed again each time that it is used.
    settings = Settings(
        vm=args.vm,
        domid=args.domid,
        vchan=args.vchan.absolute(),
        socket=args.socket.absolute(),
        devices=args.devices.absolute(),
        dev=args.dev.absolute(),
        control_socket=args.control_socket and args.control_socket.absolute(),
    )
    return settings, args.verbose


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; the exit status is 0 after a signal, 1 when it could not work."""
    settings, verbose = _settings(arguments)
    logs.set_up("pedos-agent", verbose=verbose)
    status = 0
    try:
        trio.run(run_until_signal, settings, strict_exception_groups=True)
    except* OSError as group:
        status = 1
        _log_each(group)
    return status


def _log_each(group: BaseExceptionGroup[OSError]) -> None:
    """Say in one line each what the system refused: a traceback would tell no more."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _log_each(error)
        else:
            logging.getLogger("pedos_agent").error("%s", error)


if __name__ == "__main__":
    sys.exit(main())
