"""The microphones of this VM: those that the sound server of its user has.

While no session has told of any there is at most the one that the kernel shows, which cannot be
lent. While a sound server restarts, what is known of its microphones stays.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from functools import partial

import attrs
import trio
from pedos_protocol.names import harmless_text
from pedos_protocol.sound_link import DEFAULT_DEVICE

from pedos_agent.device_classes.base import Deliver, Failed, Host
from pedos_agent.device_classes.described import listed
from pedos_agent.device_classes.mic.link_server import LinkServer
from pedos_agent.device_classes.mic.session import NOT_YET, Session
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.looking import Looking
from pedos_agent.system.reading import read_table
from pedos_agent.system.revision import Revision
from pedos_agent.system.uevents import KERNEL, heard, keep_hearing, opened

#: Of a machine whose agent has no socket for sessions.
NO_LINK = "this agent serves no sound server (--sound-socket)"


async def watch(
    host: Host,
    link: LinkServer | None,
    deliver: Deliver,
    _carried: object,
    *,
    failed: Failed,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve sessions, and deliver the microphones now and after every change; started() after the
    first time. OSError if no session could connect."""
    changed = Revision() if link is None else link.changed
    looking = Looking(deliver, failed)
    proc = str(host.roots.proc) if is_machine(host) else None

    def sources() -> contextlib.closing[socket.socket]:
        return contextlib.closing(opened(KERNEL, missing="microphones are listed once"))

    async def hear(events: socket.socket) -> None:
        while True:
            await heard(events, ["sound"])
            changed.bump()

    async with trio.open_nursery() as nursery:
        if proc is not None:
            await nursery.start(keep_hearing, sources, hear, [changed])
        if link is not None:
            await nursery.start(link.run)
        while True:
            seen = changed.number
            again = await looking.look(partial(look, link, proc))
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            with trio.move_on_after(again):
                await changed.after(seen)


def is_machine(host: Host) -> bool:
    """Whether what the kernel shows is this VM's own: in local mode it is dom0's."""
    return host.settings.xen or host.settings.control_socket is not None


def look(link: LinkServer | None, proc: str | None) -> list[LocalDevice]:
    """All microphones. OSError if they cannot be told."""
    session = None if link is None else link.session
    if session is not None and session.devices is not None:
        if session.lack:
            raise OSError(errno.ENOTCONN, session.lack)
        return _of_session(session)
    lack = NO_LINK if link is None else link.lack or NOT_YET
    return [] if proc is None else _of_kernel(proc, lack)


def _of_session(session: Session) -> list[LocalDevice]:
    devices = session.devices or ()
    return [
        listed("mic", each.id, each.identity, each.description or each.id, *session.marks(each))
        for each in devices
    ]


def _of_kernel(proc: str, lack: str) -> list[LocalDevice]:
    # One line a PCM: "00-00: ALC3246 Analog : ALC3246 Analog : playback 1 : capture 1"
    for line in read_table(f"{proc}/asound/pcm").split("\n"):
        fields = [field.strip() for field in line.split(":")]
        if any(field.startswith("capture") for field in fields):
            name = fields[1] if len(fields) > 1 else ""
            found = listed("mic", DEFAULT_DEVICE, "", name or "Microphone")
            busy = attrs.evolve(found.device, busy=harmless_text(lack))
            return [attrs.evolve(found, device=busy)]
    return []
