"""The tray widget of `up --widget`: on the user's own desktop, for the devices of this folder."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import trio
from pedos_host.children import Child, describe_exit, start_child

from pedos_dom0.local.bringup import CannotComeUp
from pedos_dom0.local.layout import Layout

logger = logging.getLogger(__name__)

PROGRAM = "pedos-widget"
#: One of these names the screen that a desktop's programs draw on.
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
# Seconds until a widget that was told to end is killed: it has nothing to save.
END_TIMEOUT = 5.0


def environment(layout: Layout) -> Mapping[str, str]:
    """That of the user's desktop, and where the service is. The sound server of a VM, which a
    command of `run` gets, is none of its business."""
    path = os.environ.get("PATH", os.defpath)
    return {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{path}",
        "PEDOS_SOCKET": str(layout.dom0_socket),
    }


def check(layout: Layout) -> None:
    """CannotComeUp if no widget can be shown here; says what is lacking."""
    if not any(os.environ.get(name) for name in SCREENS):
        raise CannotComeUp(
            f"--widget needs a desktop: neither {' nor '.join(SCREENS)} names a screen\n"
            "  start it in a terminal of the desktop, or without --widget"
        )
    if shutil.which(PROGRAM, path=environment(layout)["PATH"]) is None:
        raise CannotComeUp(
            f"--widget needs {PROGRAM}, which is not installed\n"
            "  on Debian it is in the package pedos-widget"
        )


async def run(layout: Layout) -> None:
    """Shows it until it ends or this is cancelled. Its end ends nothing else."""
    path = layout.log("widget")
    try:
        child = _start(layout, path)
    except OSError as error:
        logger.error("the widget does not start: %s", error.strerror or error)
        return
    try:
        code = await child.wait()
    except trio.Cancelled:
        await _end(child)
        raise
    logger.info("the widget %s; its own words are in %s", describe_exit(code), path)


def _start(layout: Layout, log_path: Path) -> Child:
    """OSError if it cannot be started. In a session of its own: a Ctrl-C in the terminal may only
    be the first of two."""
    with open(log_path, "ab") as log:
        return start_child(
            [PROGRAM],
            env=environment(layout),
            stdout=log,
            stderr=log,
            new_session=True,
            deathsig="TERM",
        )


async def _end(child: Child) -> None:
    child.send_signal(signal.SIGTERM)
    with trio.CancelScope(shield=True):
        with trio.move_on_after(END_TIMEOUT):
            await child.wait()
            return
        child.kill()
        await child.wait()
