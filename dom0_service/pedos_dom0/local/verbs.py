"""The verbs of `pedos-local` behind their options: init, up, run, shell."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import trio
from pedos_vchan import notify

from pedos_dom0.local import bringup, config
from pedos_dom0.local import init as making
from pedos_dom0.local.bringup import CannotComeUp, Lock, LockHeld
from pedos_dom0.local.command import CannotRun, run_command
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.machine import Machine

PROGRAM = "pedos-local"

DONE, FAILED, USAGE, CANNOT_COME_UP = 0, 1, 2, 5

# How long (seconds) `run` waits for an `up` that is still starting, or just going down.
OTHER_TIMEOUT = 90.0

logger = logging.getLogger("pedos_dom0.local")


class Stop(Exception):  # noqa: N818
    """The verb ends here, with a message for the user and this exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def say(message: str) -> None:
    """A message of ours, on stderr: stdout belongs to COMMAND."""
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


def verb_init(options: argparse.Namespace) -> int:
    try:
        layout = making.init(options.dir)
    except making.InitError as error:
        say(str(error))
        return FAILED
    where = shlex.quote(options.dir)
    print(f"made {layout.root}: dom0 and the VMs sys-usb, work and vault")
    print(f"  plug in a disk:  cp IMAGE {where}/vms/sys-usb/devices/block/")
    print(f"  look:            {PROGRAM} run {where} -- qvm-device block list")
    print(f"  who may what:    {where}/policy.d/{making.POLICY_NAME}")
    return DONE


def verb_up(options: argparse.Namespace) -> int:
    return _main(options, _up)


def verb_run(options: argparse.Namespace) -> int:
    return _main(options, functools.partial(_run, argv=options.command))


def verb_shell(options: argparse.Namespace) -> int:
    return _main(options, _shell)


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "init": verb_init,
    "up": verb_up,
    "run": verb_run,
    "shell": verb_shell,
}


class Session:
    """What a verb works with: the folder, its configuration, and the signals that come in."""

    def __init__(
        self, options: argparse.Namespace, layout: Layout, settings: config.Config
    ) -> None:
        self.options = options
        self.layout = layout
        self.settings = settings
        self.signals: trio.MemoryReceiveChannel[int]
        self._send: trio.MemorySendChannel[int]
        # A person presses Ctrl-C a few times; what does not fit is a repetition.
        self._send, self.signals = trio.open_memory_channel[int](16)
        self.coming_up: trio.CancelScope | None = None
        self.machine: Machine | None = None
        self.going_down = False
        self.first_signal: int | None = None

    async def watch(self, signals: AsyncIterator[int]) -> None:
        """While coming up, a signal is the end of it; while going down, one more kills."""
        async for number in signals:
            if self.first_signal is None:
                self.first_signal = number
            if self.coming_up is not None:
                scope, self.coming_up = self.coming_up, None
                self.going_down = True
                scope.cancel()
            elif self.going_down and self.machine is not None:
                say("killing what is left")
                self.machine.kill_all()
            else:
                with contextlib.suppress(trio.WouldBlock):
                    self._send.send_nowait(number)

    @contextlib.asynccontextmanager
    async def up(self, lock: Lock, *, echo: bool) -> AsyncIterator[bringup.Up]:
        """Everything up within the block. Stop when a signal came while it was coming up."""
        programs = bringup.LocalPrograms(
            self.layout,
            self.settings,
            verbose=self.options.verbose,
            echo=sys.stderr if echo else None,
        )
        came_up = False
        with trio.CancelScope() as scope:
            self.coming_up = scope
            async with bringup.bring_up(
                self.layout, self.settings, programs, lock, self._has_machine
            ) as up:
                self.coming_up = None
                came_up = True
                try:
                    yield up
                finally:
                    self.going_down = True
        if not came_up:
            number = self.first_signal or signal.SIGINT
            raise Stop(f"interrupted by {signal.Signals(number).name}", 128 + number)

    def _has_machine(self, machine: Machine) -> None:
        self.machine = machine


def _main(options: argparse.Namespace, verb: Callable[[Session], Awaitable[int]]) -> int:
    try:
        session = _open(options)
        return trio.run(_with_signals, session, verb, strict_exception_groups=True)
    except (Stop, CannotRun) as error:
        say(str(error))
        return error.status
    except CannotComeUp as error:
        say(str(error))
        return CANNOT_COME_UP
    except OSError as error:  # a folder that cannot be written, a full disk
        say(f"{error.filename or options.dir}: {error.strerror or error}")
        return CANNOT_COME_UP


def _open(options: argparse.Namespace) -> Session:
    """Reads the configuration and sees that what is needed is there; Stop or CannotComeUp."""
    layout = Layout.of(options.dir)
    where = shlex.quote(options.dir)
    try:
        settings = config.load(layout.config)
    except (FileNotFoundError, NotADirectoryError):
        raise CannotComeUp(
            f"there is no {layout.config}, so {where} is not a folder of local mode\n"
            f"  try:  {PROGRAM} init {where}"
        ) from None
    except config.ConfigError as error:
        raise CannotComeUp(str(error)) from error
    vm = getattr(options, "vm", "dom0")
    if vm != "dom0" and vm not in settings.names:
        known = ", ".join(("dom0", *settings.names))
        raise Stop(f"no VM named {vm!a:.64} in {layout.config}; there are: {known}", USAGE)
    bringup.check_tools()
    return Session(options, layout, settings)


async def _with_signals(session: Session, verb: Callable[[Session], Awaitable[int]]) -> int:
    result: int | Exception = FAILED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.watch, signals)
            try:
                result = await verb(session)
            except Exception as error:  # must not meet the nursery, which would wrap it
                result = error
            nursery.cancel_scope.cancel()
    if isinstance(result, Exception):
        raise result
    return result


def _log_to(path: Path, *, terminal: int, verbose: bool) -> None:
    """The machine's own log: a file, and from level `terminal` on stderr as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter(f"{PROGRAM}: %(message)s"))
    to_terminal.setLevel(logging.DEBUG if verbose else terminal)
    root.handlers[:] = [to_file, to_terminal]


async def _up(session: Session) -> int:
    layout = session.layout
    try:
        with Lock.hold(layout.lock) as lock:
            _log_to(layout.log("machine"), terminal=logging.INFO, verbose=session.options.verbose)
            logger.info("bringing up %s", layout.root)
            try:
                async with session.up(lock, echo=True) as up:
                    for line in _how_to_use(session, up):
                        logger.info("%s", line)
                    with contextlib.suppress(OSError):  # nobody waits for it any more
                        notify.ready()
                    number = await session.signals.receive()
                    logger.info("%s: going down", signal.Signals(number).name)
            except Stop as stop:
                logger.info("%s", stop)  # Ctrl-C is how `up` ends, early or late
            logger.info("all is down")
    except LockHeld as other:
        holder = f"pid {other.pid}" if other.pid else "which is just starting"
        where = shlex.quote(session.options.dir)
        raise Stop(
            f"{layout.root} is up already ({PROGRAM}, {holder})\n"
            f"  use it:  {PROGRAM} run {where} -- qvm-device block list",
            FAILED,
        ) from other
    return DONE


def _how_to_use(session: Session, up: bringup.Up) -> list[str]:
    layout = session.layout
    where = shlex.quote(session.options.dir)
    lines = [f"dom0's service is up: {layout.dom0_socket}"]
    for domain in up.machine.domains.values():
        if domain.domid is None:
            lines.append(f"{domain.name} is halted (qvm-start {domain.name})")
        else:
            lines.append(f"{domain.name} is domain {domain.domid}: {layout.vm(domain.name)}")
    return [
        *lines,
        f"logs: {layout.root}/log    policy: {layout.policy}",
        "in another terminal:",
        f"  {PROGRAM} run {where} -- qvm-device block list",
        f"  export PEDOS_SOCKET={shlex.quote(str(layout.dom0_socket))}   and then qvm-* at will",
        "everything is up; Ctrl-C ends it",
    ]


async def _run(session: Session, argv: list[str], *, deathsig: str = "TERM") -> int:
    """Runs COMMAND in the machine that is up, or in one of its own."""
    env = bringup.client_environment(session.layout, session.options.vm)
    deadline = trio.current_time() + OTHER_TIMEOUT
    while True:
        try:
            with Lock.hold(session.layout.lock) as lock:
                _log_to(
                    session.layout.log("machine"),
                    terminal=logging.WARNING,
                    verbose=session.options.verbose,
                )
                async with session.up(lock, echo=False):
                    return await _run_in(session, argv, env, deathsig)
        except LockHeld as other:
            if other.ready:
                logging.basicConfig(format=f"{PROGRAM}: %(message)s")
                return await _run_in(session, argv, env, deathsig)
            if trio.current_time() > deadline:
                raise CannotComeUp(
                    f"{PROGRAM} (pid {other.pid}) has {session.layout.root}, "
                    "but it does not get ready"
                ) from other
        await trio.sleep(bringup.LOOK_AGAIN)


async def _run_in(session: Session, argv: list[str], env: Mapping[str, str], deathsig: str) -> int:
    vm = session.options.vm
    if vm != "dom0":
        async with bringup.service(session.layout) as dom0:
            if not await bringup.agent_of(dom0, vm):
                say(f"{vm} is halted; starting it")
                problem = await bringup.start_vm(dom0, vm)
                if problem is not None:
                    raise CannotComeUp(problem)
    return await run_command(argv, env, session.signals, deathsig=deathsig)


async def _shell(session: Session) -> int:
    vm = session.options.vm
    shell = os.environ.get("SHELL") or "/bin/sh"
    say(f"a shell as seen from {vm}; `exit` or Ctrl-D ends it")
    # bash sets PS1 itself from its start-up files, but leaves PROMPT_COMMAND alone.
    os.environ["PROMPT_COMMAND"] = f'PS1="[{vm}] ${{PS1#\\[{vm}\\] }}"'
    os.environ["PS1"] = f"[{vm}] $ "
    session.layout.make_vm_folders(vm)
    os.chdir(session.layout.vm(vm))
    # A shell ends by SIGHUP when its terminal, or here its machine, is gone; it ignores SIGTERM.
    return await _run(session, [shell, "-i"], deathsig="HUP")
