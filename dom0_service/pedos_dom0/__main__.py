"""The program pedos-dom0."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_vchan import logs

from pedos_dom0 import __version__
from pedos_dom0.drivers.base import HypervisorLost
from pedos_dom0.drivers.local import LocalDriver
from pedos_dom0.service import Config, run
from pedos_dom0.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    """The options; every path must be given, because none is right for every driver."""
    parser = argparse.ArgumentParser(
        prog="pedos-dom0",
        description="Decides which VM gets which device: policy, leases, assignments, audit.",
    )
    parser.add_argument("--driver", choices=("local",), required=True, help="the hypervisor")
    parser.add_argument("--machine", type=Path, required=True, help="socket of the machine")
    parser.add_argument("--vchan", type=Path, required=True, help="folder where channels meet")
    parser.add_argument("--socket", type=Path, required=True, help="socket for qvm-device")
    parser.add_argument(
        "--dom0-agent", type=Path, required=True, help="control socket of dom0's own agent"
    )
    parser.add_argument("--state", type=Path, required=True, help="folder of database and audit")
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        required=True,
        help="folder of *.policy files; of two files with one name the folder named first wins",
    )
    parser.add_argument(
        "--vms-dir", type=Path, required=True, help="folder of *.toml files with facts about VMs"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log everything")
    parser.add_argument("--version", action="version", version=f"pedos-dom0 {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service; 0 after SIGTERM or SIGINT, 1 with the reason in the log otherwise."""
    arguments = make_parser().parse_args(argv)
    logs.set_up("pedos-dom0", verbose=arguments.verbose)
    driver = LocalDriver(
        machine=arguments.machine, vchan=arguments.vchan, dom0_agent=arguments.dom0_agent
    )
    config = Config(
        socket=arguments.socket,
        state=arguments.state,
        policy=tuple(arguments.policy),
        vms=arguments.vms_dir.absolute(),
    )
    # What was imported stays: without it, a full collection, which a new policy brings about, takes
    # a few milliseconds instead of thirty, in which nobody is served.
    gc.freeze()
    status = 0
    try:
        trio.run(functools.partial(run, config, driver), strict_exception_groups=True)
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
            logger.critical("%s", error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
