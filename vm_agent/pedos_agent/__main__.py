"""The program `pedos-agent`: arguments, logging, and one trio run."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the launchers of programs do it themselves
    gc.disable()  # until `main`: nothing of what is imported is garbage

from pedos_host import logs
from pedos_host.arguments import Parser
from pedos_protocol import VERSION
from pedos_protocol.names import is_vm_name
from pedos_vchan import running, xen

from pedos_agent.agent import run_until_signal
from pedos_agent.settings import Settings, xen_settings

# Options for local mode only.
_LOCAL_ONLY = ("vchan", "devices", "dev", "keeper")
# Those of them without which there is no VM.
_NEEDED = ("vm", "domid", "vchan", "devices", "dev")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pedos-agent",
        description="Finds the devices of one VM, and lends and borrows devices as dom0 tells it.",
    )
    parser.add_argument(
        "--driver",
        choices=["local", "xen"],
        required=True,
        help="the hypervisor; local mode runs the whole system on one machine",
    )
    parser.add_argument(
        "--vm", metavar="NAME", help="name of this VM (on Xen default: the domain's name)"
    )
    parser.add_argument(
        "--domid",
        type=int,
        metavar="N",
        help="its domain number (on Xen default: the one in xenstore)",
    )
    parser.add_argument(
        "--socket",
        required=True,
        type=Path,
        metavar="PATH",
        help="the socket of the VM's command line",
    )
    parser.add_argument(
        "--control-socket",
        type=Path,
        metavar="PATH",
        help="the control socket, only for dom0's own agent",
    )
    parser.add_argument(
        "--sound-socket",
        type=Path,
        metavar="PATH",
        help="the socket of the user's pedos-sound, which records and offers microphones; without "
        "it they are neither lent nor borrowed",
    )
    parser.add_argument(
        "--sound-user",
        metavar="USER",
        help="the user who has the microphones, by name or number; default: the one at the screen, "
        "and without a screen the first whose pedos-sound comes",
    )
    parser.add_argument(
        "--call-socket",
        type=Path,
        metavar="PATH",
        help="the socket of the programs that call services of other VMs (qvm-call); without it "
        "none can",
    )
    parser.add_argument(
        "--give-back",
        choices=["yes", "no"],
        default="yes",
        help="whether a USB device that was lent goes back to this VM's drivers (the default), or "
        "to none until it is plugged in anew",
    )
    local = parser.add_argument_group("--driver local")
    local.add_argument("--vchan", type=Path, metavar="DIR", help="folder of the channels' sockets")
    local.add_argument("--devices", type=Path, metavar="DIR", help="folder whose files are devices")
    local.add_argument("--dev", type=Path, metavar="DIR", help="folder of borrowed devices")
    local.add_argument(
        "--keeper", type=Path, metavar="PATH", help="the socket of what runs this VM's services"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def _checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with a sentence if the options do not fit together."""
    given = [name for name in _LOCAL_ONLY if getattr(args, name) is not None]
    if args.driver == "local":
        missing = [name for name in _NEEDED if getattr(args, name) is None]
        if missing:
            parser.error(f"--driver local needs {_options(missing)}")
    elif given:
        parser.error(f"{_options(given)}: only for --driver local")
    if args.vm is not None and not is_vm_name(args.vm):
        parser.error(
            f"--vm: {args.vm!r} is not a VM name: a letter, then letters, digits, '_', '-'"
        )
    if args.sound_user is not None and args.driver == "local":
        parser.error("--sound-user: only for --driver xen; local mode is one user's")
    if args.sound_user is not None and args.sound_socket is None:
        parser.error("--sound-user needs --sound-socket, where that user's pedos-sound connects")
    is_dom0 = args.domid == 0
    if (args.domid or 0) < 0 or is_dom0 != (args.control_socket is not None):
        parser.error("--domid 0 goes with --control-socket (dom0's own agent), others go without")


def _options(names: Sequence[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


def _settings(arguments: Sequence[str] | None) -> tuple[Settings, bool]:
    parser = _parser()
    args = parser.parse_args(arguments)
    _checked(parser, args)
    # Absolute, but not resolved: a symlink is followed again at each use.
    control_socket = args.control_socket and args.control_socket.absolute()
    sound = args.sound_socket and args.sound_socket.absolute()
    calls = args.call_socket and args.call_socket.absolute()
    if args.driver == "xen":
        vm, domid = args.vm, args.domid
        if domid is None or vm is None:
            domid, vm = _own_domain(domid, vm)
        settings = xen_settings(
            vm,
            domid,
            args.socket.absolute(),
            control_socket,
            give_back=args.give_back == "yes",
            sound=sound,
            sound_user=args.sound_user,
            calls=calls,
        )
        return settings, args.verbose
    settings = Settings(
        vm=args.vm,
        domid=args.domid,
        vchan=args.vchan.absolute(),
        socket=args.socket.absolute(),
        devices=args.devices.absolute(),
        dev=args.dev.absolute(),
        control_socket=control_socket,
        sound=sound,
        keeper=args.keeper and args.keeper.absolute(),
        calls=calls,
    )
    return settings, args.verbose


def _own_domain(domid: int | None, vm: str | None) -> tuple[int, str]:
    """What xenstore says of the domain that this runs in. OSError if there is no xenstore.

    The name is only for messages: the channel tells dom0 which VM this is.
    """
    with xen.Store() as store:
        number = int(store.read("domid") or "0") if domid is None else domid
        if number == 0:
            raise OSError("this is dom0: its agent is started with --domid 0 and --control-socket")
        name = vm or store.read("name") or ""
    return number, name if is_vm_name(name) else f"domain-{number}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; the exit status is 0 after a signal, 1 if it could not work."""
    try:
        settings, verbose = _settings(arguments)
    except OSError as error:
        logs.set_up("pedos-agent", verbose=False)
        logging.getLogger("pedos_agent").error("%s", error.strerror or error)
        return 1
    logs.set_up("pedos-agent", verbose=verbose)
    gc.enable()
    status = 0
    try:
        running.run(run_until_signal, settings)
    except* OSError as group:
        status = 1
        _log_each(group)
    return status


def _log_each(group: BaseExceptionGroup[OSError]) -> None:
    """Log in one line each what the system refused: a traceback would tell no more."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _log_each(error)
        else:
            logging.getLogger("pedos_agent").error("%s", error)


if __name__ == "__main__":
    sys.exit(main())
