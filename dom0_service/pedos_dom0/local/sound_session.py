"""The program that is one VM's sound server in local mode.

    python -m pedos_dom0.local.sound_session [--microphone] pipewire|pulseaudio FOLDER

It says READY=1 once the server answers and has all that it will have, and ends as a whole when one
of its programs ends: its supervisor starts all of it anew, as a desktop would.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_host import logs, notify
from pedos_host.children import Child, describe_exit, start_child
from pedos_host.system_errors import what_is_wrong
from pedos_host.waiting import first_of

from pedos_dom0.local import sound_server
from pedos_dom0.local.sound_server import SoundServer

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("pedos_dom0.local.sound")

# Seconds until the server must answer. It takes half a second, and far longer on a busy machine.
ANSWER_TIMEOUT = 30.0
# Seconds for one question to it: a server that hangs is asked again.
ASK_TIMEOUT = 5.0
# Seconds between two looks for what comes without an event: a socket, the first sink.
LOOK_AGAIN = 0.02
# What libpulse says of any connection that the kernel does not make. PulseAudio has room for six
# that it has not accepted yet, so also one that is only busy, with clients that gave up behind it,
# refuses.
REFUSED = "Connection refused"


class Refused(Exception):  # noqa: N818 - says what happened
    """The server does not do what it must. `str()` says what."""


async def serve(server: SoundServer, microphone: bool) -> str:
    """Runs the server, and says why it has ended; none of its programs stays. OSError if the
    folder cannot be made."""
    shutil.rmtree(server.folder, ignore_errors=True)
    server.folder.mkdir(mode=0o700, parents=True)
    for folder in (server.runtime, server.home):
        folder.mkdir(mode=0o700)
    for file, text in server.files().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    why: list[str] = []
    async with trio.open_nursery() as nursery:

        async def watch(child: Child) -> None:
            try:
                code = await child.wait()
                why.append(f"{child.name} {describe_exit(code)}")
                nursery.cancel_scope.cancel()
            finally:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()

        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                for argv, socket in server.steps():
                    child = start_child(argv, env=server.environment())
                    nursery.start_soon(watch, child)
                    if socket is not None:
                        await _serves(socket)
                await _answers(server)
                if microphone:
                    for command in sound_server.microphone():
                        await _ask(server, command, check=True)
                    await _chosen(server, sound_server.MICROPHONE)
            notify.ready()
            logger.info("the sound server answers")
        except trio.TooSlowError:
            why.append(f"the sound server does not answer within {ANSWER_TIMEOUT:.0f} s")
            nursery.cancel_scope.cancel()
        except Refused as error:
            why.append(str(error))
            nursery.cancel_scope.cancel()
        except OSError as error:
            why.append(what_is_wrong(error))
            nursery.cancel_scope.cancel()
    return why[0] if why else "it was cancelled"


async def _serves(socket: Path) -> None:
    while True:
        with contextlib.suppress(OSError):
            async with await trio.open_unix_socket(socket):
                return
        await trio.sleep(LOOK_AGAIN)


async def _answers(server: SoundServer) -> None:
    """Returns when there is a sink: the session manager makes a silent one where there is no
    other, as the last thing of its start."""
    while not await _ask(server, ["pactl", "list", "short", "sinks"]):  # noqa: ASYNC110
        await trio.sleep(LOOK_AGAIN)


async def _chosen(server: SoundServer, source: str) -> None:
    """Makes this the default source, and returns when it is: WirePlumber 0.5 would take a monitor.
    pipewire-pulse answers "Not supported" until the session manager keeps defaults, which may be
    after it has made the first sink."""
    is_chosen = False
    while not is_chosen:
        with contextlib.suppress(Refused):
            # Also where it is the default by chance: a microphone that comes later may be next.
            await _ask(server, ["pactl", "set-default-source", source], check=True)
            is_chosen = True
        now = await _ask(server, ["pactl", "get-default-source"])
        is_chosen = is_chosen and now.decode().strip() == source
        if not is_chosen:
            await trio.sleep(LOOK_AGAIN)


async def _ask(server: SoundServer, argv: Sequence[str], *, check: bool = False) -> bytes:
    """What the command prints: nothing if it fails or hangs, and with `check` Refused. One that
    could not connect has done nothing, and is run again then: the caller has a bound."""
    while True:
        with trio.move_on_after(ASK_TIMEOUT):
            done = await trio.run_process(
                argv,
                env=server.environment(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            if done.returncode == 0:
                return bytes(done.stdout)
            if not check:
                return b""
            said = done.stderr.decode(errors="replace").strip()
            if REFUSED not in said:
                raise Refused(f"{' '.join(argv)}: {said}")
            await trio.sleep(LOOK_AGAIN)
            continue
        if check:
            raise Refused(f"{' '.join(argv)}: no answer within {ASK_TIMEOUT:.0f} s")
        return b""


async def _until_signal(server: SoundServer, microphone: bool) -> str | None:
    """Why the server has ended by itself; None after a signal."""
    why: list[str] = []

    async def run() -> None:
        why.append(await serve(server, microphone))

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await first_of(run, signals.__anext__)
    return why[0] if why else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 after a signal, 1 when the server does not run any more."""
    parser = argparse.ArgumentParser(prog="sound-session", allow_abbrev=False)
    parser.add_argument("--microphone", action="store_true")
    parser.add_argument("kind", choices=sound_server.KINDS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    logs.set_up("sound-session", verbose=False)
    server = SoundServer(options.kind, options.folder.absolute())
    problem = server.too_long()
    if problem is None:
        try:
            problem = trio.run(
                _until_signal, server, options.microphone, strict_exception_groups=True
            )
        except OSError as error:
            problem = what_is_wrong(error)
    if problem is not None:
        logger.error("%s", problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
