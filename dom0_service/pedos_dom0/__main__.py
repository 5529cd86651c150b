"""The program pedos-dom0."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the launchers of programs do it themselves
    gc.disable()  # until `main`: nothing of what is imported is garbage

from pedos_host import logs
from pedos_host.arguments import Parser
from pedos_host.system_errors import what_is_wrong
from pedos_protocol.sockets import DESKTOP_GROUP
from pedos_vchan import running
from pedos_vchan import xen as vchan

from pedos_dom0 import PROGRAM
from pedos_dom0.connections.desktop_socket import Desktop
from pedos_dom0.drivers.base import HypervisorLost
from pedos_dom0.drivers.local import LocalDriver
from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_dom0.service import Config, run
from pedos_dom0.tables.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


# Options for one driver only: with the other one they would have no effect, and are refused.
_LOCAL_ONLY = ("machine", "vchan")
_XEN_ONLY = ("config_dir", "xl")
# Where Debian's Xen keeps the configurations of VMs.
CONFIG_DIR = Path("/etc/xen")


def make_parser() -> argparse.ArgumentParser:
    """The options; `check` checks their combination."""
    parser = Parser(
        prog="pedos-dom0",
        description="Decides which VM gets which device: policy, leases, assignments, audit.",
    )
    parser.add_argument(
        "--driver",
        choices=("local", "xen"),
        required=True,
        help="the hypervisor; local mode runs the whole system on one machine",
    )
    parser.add_argument("--socket", type=Path, required=True, help="the socket of qvm-*")
    parser.add_argument(
        "--desktop-socket",
        type=Path,
        help="a second socket, for members of a group, who may do less than root; its folder is "
        "made, and is for this alone",
    )
    parser.add_argument(
        "--desktop-group",
        metavar="GROUP",
        help=f"the group of --desktop-socket, a name or a number (default: {DESKTOP_GROUP})",
    )
    parser.add_argument(
        "--dom0-agent", type=Path, required=True, help="control socket of dom0's own agent"
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of the database and the audit log"
    )
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        required=True,
        help="folder of *.policy files; may be given several times, the first has precedence",
    )
    parser.add_argument(
        "--vms-dir", type=Path, required=True, help="folder of *.toml files with facts about VMs"
    )
    local = parser.add_argument_group("--driver local")
    local.add_argument("--machine", type=Path, help="socket of the machine")
    local.add_argument("--vchan", type=Path, help="folder of the channels' sockets")
    xen = parser.add_argument_group("--driver xen")
    xen.add_argument(
        "--config-dir",
        type=Path,
        action="append",
        metavar="DIR",
        help=f"folder of the VMs' configurations NAME.cfg, as for xl (default: {CONFIG_DIR}); "
        "may be given several times, the first has precedence",
    )
    xen.add_argument("--xl", metavar="PROGRAM", help="the toolstack's command (default: xl)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log everything")
    parser.add_argument("--version", action="version", version=PROGRAM)
    return parser


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program with a sentence if an option is missing or useless for the driver."""
    is_local = arguments.driver == "local"
    missing = [name for name in _LOCAL_ONLY if is_local and getattr(arguments, name) is None]
    if missing:
        parser.error(f"--driver local needs {' and '.join(map(_option, missing))}")
    others = _XEN_ONLY if is_local else _LOCAL_ONLY
    useless = [name for name in others if getattr(arguments, name) is not None]
    if useless:
        needs = "xen" if is_local else "local"
        parser.error(f"{' and '.join(map(_option, useless))}: only for --driver {needs}")
    if arguments.desktop_group is not None and arguments.desktop_socket is None:
        parser.error("--desktop-group is of no use without --desktop-socket")


def _desktop(arguments: argparse.Namespace) -> Desktop | None:
    if arguments.desktop_socket is None:
        return None
    group = arguments.desktop_group or DESKTOP_GROUP
    return Desktop(arguments.desktop_socket.absolute(), group)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service; 0 after SIGTERM or SIGINT, 1 with the reason in the log otherwise."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    logs.set_up("pedos-dom0", verbose=arguments.verbose)
    driver: LocalDriver | XenDriver
    if arguments.driver == "xen":
        if problem := vchan.missing():
            logger.critical("%s", problem)
            return 1
        driver = XenDriver(
            config_dirs=[path.absolute() for path in arguments.config_dir or [CONFIG_DIR]],
            dom0_agent=arguments.dom0_agent,
            xl=arguments.xl or "xl",
        )
    else:
        driver = LocalDriver(
            machine=arguments.machine, vchan=arguments.vchan, dom0_agent=arguments.dom0_agent
        )
    config = Config(
        socket=arguments.socket,
        state=arguments.state,
        policy=tuple(arguments.policy),
        vms=arguments.vms_dir.absolute(),
        desktop=_desktop(arguments),
    )
    # Users, other VMs and timers wait for this loop, also while there is only one channel.
    vchan.share_loop()
    # Imported modules stay: without this, a full garbage collection, which a new policy causes,
    # takes thirty milliseconds instead of a few, in which no request is served.
    gc.freeze()
    gc.enable()
    status = 0
    try:
        running.run(run, config, driver)
    except* (StoreError, HypervisorLost) as group:
        status = _say(group)
    except* OSError as group:
        status = _say(group)
    except* KeyboardInterrupt:
        status = 130  # before the service took over the signal
    return status


def _say(group: BaseExceptionGroup[BaseException]) -> int:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _say(error)
        else:
            logger.critical("%s", what_is_wrong(error))
    return 1


if __name__ == "__main__":
    sys.exit(main())
