"""The program `pedos-run`: arguments, the log, and the listening socket."""

from __future__ import annotations

import argparse
import logging
import os
import pwd
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from pedos_host import logs
from pedos_host.arguments import Parser
from pedos_host.system_errors import what_is_wrong
from pedos_protocol import VERSION
from pedos_protocol.names import is_user_name

from pedos_keeper import guard, lookup, service_config
from pedos_keeper.call import Place
from pedos_keeper.children import Children, become_subreaper
from pedos_keeper.control_groups import own_group
from pedos_keeper.environment import Environment, LoginEnvironment, as_started, without_own
from pedos_keeper.keeper import Keeper

log = logging.getLogger("pedos_keeper")

#: The first descriptor that systemd passes (sd_listen_fds(3)).
_PASSED: Final = 3


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pedos-run",
        description="Runs the services of one user of a VM, as the VM's agent tells it. systemd "
        "starts it with the first call (pedos-run@USER.socket); it ends after five idle minutes.",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="the user whose services it runs: its own. Services get the environment of a login; "
        "without this option (in local mode) that of this program",
    )
    parser.add_argument(
        "--services",
        metavar="DIR",
        action="append",
        help=f"a folder of services; the first comes first (default: {', '.join(lookup.FOLDERS)})",
    )
    parser.add_argument(
        "--configurations",
        metavar="DIR",
        action="append",
        help="a folder of services' configurations; the first comes first (default: "
        f"{', '.join(service_config.FOLDERS)})",
    )
    parser.add_argument(
        "--listen",
        metavar="N",
        type=int,
        help="the number of the listening socket that it inherits; default: the one of systemd",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def listener_of(number: int | None, environment: Mapping[str, str]) -> socket.socket:
    """The listening socket that this program was given. OSError says what is wrong with it."""
    if number is None:
        is_passed = environment.get("LISTEN_PID") == str(os.getpid())
        if not is_passed or environment.get("LISTEN_FDS") != "1":
            raise OSError(
                "systemd starts this program, with a socket: systemctl start pedos-run@USER.socket"
            )
        number = _PASSED
    listener = socket.socket(fileno=number)
    os.set_inheritable(number, False)
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.type != socket.SOCK_SEQPACKET or not is_listening:
        raise OSError(f"descriptor {number} is no listening socket for packets")
    return listener


def _go_home(environment: Mapping[str, str]) -> None:
    """Services begin in the user's home."""
    home = environment.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
    try:
        os.chdir(home)
    except OSError as error:
        log.error("services begin in / and not in the user's home: %s", what_is_wrong(error))
        os.chdir("/")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the keeper; the exit status is 0 when it was idle or after a signal, 1 if it could not
    work."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.user is not None and not is_user_name(args.user):
        parser.error(f"--user: {args.user!r} is not a user's name")
    children = Children()
    try:
        listener = listener_of(args.listen, os.environ)
        become_subreaper()
        # Before the log, which has a thread.
        if args.user is None and (status := guard.stand(children)) is not None:
            return status
        logs.set_up("pedos-run", verbose=args.verbose)
        started = as_started()
        _go_home(started)
        own = Environment(without_own(started))
        place = Place(
            user=args.user,
            services=args.services or lookup.FOLDERS,
            configurations=args.configurations or service_config.FOLDERS,
            children=children,
            environment=(LoginEnvironment(children, own).get if args.user else lambda: own),
            group=own_group(),
        )
        Keeper(listener, place).run()
    except (OSError, LookupError) as error:
        logs.set_up("pedos-run", verbose=args.verbose)
        log.error("%s", what_is_wrong(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
