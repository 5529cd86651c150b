"""The verbs of `pedos-local`: init, up, run, shell."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

import trio
from pedos_host import notify
from pedos_host.line_writer import LineWriter, append_to
from pedos_host.logs import LineFormatter, LineHandler
from pedos_host.waiting import first_of
from pedos_protocol.names import escaped_text

from pedos_dom0.local import bringup, config, sound_programs, templates, widget
from pedos_dom0.local import init as making
from pedos_dom0.local.bringup import CannotComeUp, Lock, LockHeld, read_lock
from pedos_dom0.local.command import CannotRun, run_command
from pedos_dom0.local.follow import Follower
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.machine import Machine
from pedos_dom0.local.session import FAILED, Session, Stop, with_signals
from pedos_dom0.local.terminal import PROGRAM, Terminal
from pedos_dom0.local.unused import until_unused
from pedos_dom0.local.users import Users
from pedos_dom0.local.words import for_shell, in_words, system_errors

DONE, USAGE, CANNOT_COME_UP = 0, 2, 5

# Seconds that `run` waits for an `up` that is still starting, or just stopping: a start takes a
# second or two, and a minute only if something is wrong.
OTHER_TIMEOUT = 60.0
# Seconds after which it says that it waits.
OTHER_NOTICE = 3.0
# A Ctrl-C that ended COMMAND reaches this process too, within about this time (seconds).
SIGNAL_SETTLE = 0.05

logger = logging.getLogger("pedos_dom0.local")


def verb_init(options: argparse.Namespace) -> int:
    text, session = templates.CONFIG, False
    if options.sound:
        session = sound_programs.has_session()
        text = templates.with_sound(sound_programs.installed_kind(), session=session)
    try:
        layout = making.init(options.dir, text=text)
    except making.InitError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return FAILED
    where = for_shell(options.dir)
    print(f"made {escaped_text(str(layout.root))}: dom0 and the VMs sys-usb, work and vault")
    print(f"  plug in a disk:  cp IMAGE {for_shell(f'{options.dir}/vms/sys-usb/devices/block/')}")
    print(f"  look:            {PROGRAM} run {where} -- qvm-device block list")
    print(f"  who may what:    {for_shell(f'{options.dir}/policy.d/{making.POLICY_NAME}')}")
    print(f"  tags and types:  {for_shell(f'{options.dir}/vms.d/{making.FACTS_NAME}')}")
    if options.sound:
        for line in _how_to_hear(where, "dom0" if session else "sys-usb"):
            print(f"  {line}")
        for problem in sound_programs.problems(layout, config.load(layout.config).sounds):
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
    return DONE


def _how_to_hear(where: str, source: str) -> list[str]:
    """The lines about a microphone that one can hear. The last command's right half runs outside,
    where the loudspeakers are."""
    into = f"{PROGRAM} run {where} --vm {source} -- paplay SPEECH.wav"
    speak = "into it:         (speak)" if source == "dom0" else f"into it:         {into}"
    return [
        f"a microphone:    {PROGRAM} up {where} &",
        f"                 {PROGRAM} run {where} -- qvm-device mic attach work {source}:mic",
        speak,
        f"out of it:       {PROGRAM} run {where} --vm work -- parec -d pedos_mic.{source} | pacat",
    ]


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


def _main(options: argparse.Namespace, verb: Callable[[Session], Awaitable[int]]) -> int:
    terminal = Terminal()
    try:
        session = _open(options, terminal)
        return trio.run(with_signals, session, verb, strict_exception_groups=True)
    except (Stop, CannotRun) as error:
        terminal.say(str(error))
        return error.status
    except CannotComeUp as error:
        terminal.say(str(error))
        return CANNOT_COME_UP
    except OSError as error:  # a folder that cannot be written, a full disk
        terminal.say(in_words(error, options.dir))
        return CANNOT_COME_UP
    except BaseExceptionGroup as group:
        if (errors := system_errors(group)) is None:
            raise
        for each in errors:
            terminal.say(in_words(each, options.dir))
        return CANNOT_COME_UP
    finally:
        terminal.close()


def _open(options: argparse.Namespace, terminal: Terminal) -> Session:
    """Reads the configuration and checks that everything needed is there; Stop or CannotComeUp."""
    layout = Layout.of(options.dir)
    where = for_shell(options.dir)
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
    bringup.check_tools(layout, settings)
    if getattr(options, "widget", False):
        widget.check(layout)
    return Session(options, layout, settings, terminal)


def _missed(count: int) -> str:
    return f"{count} lines are lost: the disk did not take them in time"


def _log_to(session: Session, *, level: int, own_machine: bool) -> None:
    """The machine's own log: a file, and from `level` on the terminal as well."""
    verbose = session.options.verbose
    to_terminal = logging.StreamHandler(session.terminal)
    to_terminal.setFormatter(LineFormatter(f"{PROGRAM}: %(message)s"))
    to_terminal.setLevel(logging.DEBUG if verbose else level)
    handlers: list[logging.Handler] = [to_terminal]
    if own_machine:
        path = session.layout.log("machine")
        path.parent.mkdir(parents=True, exist_ok=True)
        session.layout.rotate_logs()
        to_file = LineHandler(LineWriter(append_to(path), _missed))
        to_file.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(to_file)
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.handlers[:] = handlers


async def _up(session: Session) -> int:
    layout = session.layout
    try:
        with Lock.hold(layout) as lock:
            _log_to(session, level=logging.INFO, own_machine=True)
            session.watch_terminal()
            logger.info("bringing up %s", layout.root)
            dom0_log = Follower(layout.log("dom0"), session.terminal.write)
            session.background.start_soon(dom0_log.run)
            try:
                async with session.up(lock) as up:
                    for line in _how_to_use(session, up):
                        logger.info("%s", line)
                    if session.options.widget:
                        session.background.start_soon(widget.run, layout)
                    with contextlib.suppress(OSError):  # its reader has gone
                        notify.ready()
                    why = await _end_of_up(session, up.machine)
                    if not up.machine.dom0.ended.is_set():
                        await _until_unused(session)
                    logger.info("%s: going down", why)
            except Stop as stop:
                logger.info("%s", stop)  # Ctrl-C is how `up` ends, early or late
            while dom0_log.look():
                pass
            logger.info("all is down")
            if session.first_signal in (None, signal.SIGPIPE):
                return FAILED
    except LockHeld as other:
        where = for_shell(session.options.dir)
        raise Stop(
            f"{layout.root} is up already ({PROGRAM}, {_holder(other)})\n"
            f"  use it:  {PROGRAM} run {where} -- qvm-device block list",
            FAILED,
        ) from other
    return DONE


async def _end_of_up(session: Session, machine: Machine) -> str:
    """Why everything stops: a signal, or dom0's service was given up. Without the service no
    request can be served, and only another `up` starts it again."""
    why = []

    async def signal_comes() -> None:
        why.append(signal.Signals(await session.signals.receive()).name)

    async def service_is_given_up() -> None:
        await machine.dom0.ended.wait()
        why.append("dom0's service does not run any more")

    await first_of(signal_comes, service_is_given_up)
    return why[0]


def _holder(other: LockHeld) -> str:
    return f"pid {other.pid}" if other.pid else "which is just starting"


def _how_to_use(session: Session, up: bringup.Up) -> list[str]:
    layout = session.layout
    where = for_shell(session.options.dir)
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
        f"  export PEDOS_SOCKET={for_shell(str(layout.dom0_socket))}   and then qvm-* at will",
        *_how_much_is_up(up),
    ]


def _how_much_is_up(up: bringup.Up) -> list[str]:
    if not up.problems:
        return ["everything is up; Ctrl-C ends it"]
    return [
        "not everything is up; Ctrl-C ends what is:",
        *(f"  {line}" for problem in up.problems for line in problem.split("\n")),
    ]


async def _run(session: Session, argv: list[str], *, deathsig: str = "TERM") -> int:
    """Runs COMMAND in the running machine, or in one of its own."""
    layout = session.layout
    env = bringup.client_environment(layout, session.settings, session.options.vm)
    waiting = _Waiting(session)
    while True:
        try:
            with Lock.hold(layout) as lock:
                _log_to(session, level=logging.WARNING, own_machine=True)
                async with session.up(lock):
                    try:
                        return await _run_in(session, argv, env, deathsig)
                    finally:
                        await _last_out(session, lock)
                        await _until_unused(session)
        except LockHeld as other:
            if other.ready:
                with Users(layout.users) as users:
                    # It may have begun to stop since the look, but cannot any more.
                    if users.join() and read_lock(layout.lock)[1]:
                        _log_to(session, level=logging.WARNING, own_machine=False)
                        return await _run_in(session, argv, env, deathsig)
            waiting.check(other)
        number = await session.next_signal(bringup.LOOK_AGAIN)
        if number is not None:
            raise Stop(f"interrupted by {signal.Signals(number).name}", 128 + number)


class _Waiting:
    """The patience of `run` with another pedos-local that is neither ready nor gone."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._start = trio.current_time()
        self._said = False

    def check(self, other: LockHeld) -> None:
        """CannotComeUp after too long; says after a while that it waits."""
        waited = trio.current_time() - self._start
        layout = self._session.layout
        if waited > OTHER_NOTICE and not layout.lock.exists():
            raise CannotComeUp(
                f"{PROGRAM} ({_holder(other)}) has {layout.root}, but its run/lock was deleted: "
                "no other command can use it\n"
                "  next:  end that one, and bring it up again"
            ) from other
        if waited > OTHER_TIMEOUT:
            raise CannotComeUp(
                f"{PROGRAM} ({_holder(other)}) has {layout.root}, "
                f"but was not ready within {OTHER_TIMEOUT:.0f} s\n"
                f"  its log:  {layout.log('machine')}"
            ) from other
        if waited > OTHER_NOTICE and not self._said:
            self._said = True
            self._session.terminal.say(
                f"waiting for {PROGRAM} ({_holder(other)}), which has {layout.root}, to be ready"
            )


async def _last_out(session: Session, lock: Lock) -> None:
    """Returns when no other process uses the machine, and none can join it any more.

    Or when a signal demands the stop all the same.
    """
    with Users(session.layout.users) as users:
        await _settle(session)
        if not users.alone():
            others = f"{users.count()} other command(s) that use this machine"
            if session.told_to_end:
                session.terminal.say(f"going down in spite of {others}")
                return
            session.terminal.say(f"waiting for {others}")
            while not users.alone():
                if await session.next_signal(bringup.LOOK_AGAIN) is not None:
                    return
        with contextlib.suppress(OSError):  # a full disk leaves it empty: not ready
            lock.set_ready(False)


async def _settle(session: Session) -> None:
    """The Ctrl-C that ended COMMAND does not apply to what comes after it."""
    while await session.next_signal(SIGNAL_SETTLE) is not None:
        pass


async def _until_unused(session: Session) -> None:
    await until_unused(session.layout, session.signals.receive, hurried=session.told_to_end)


async def _run_in(session: Session, argv: list[str], env: Mapping[str, str], deathsig: str) -> int:
    vm = session.options.vm
    if vm != "dom0":
        async with bringup.service(session.layout) as dom0:
            if not await bringup.agent_of(dom0, vm):
                session.terminal.say(f"{vm} is halted; starting it")
                problem = await bringup.start_vm(dom0, vm)
                if problem is not None:
                    raise CannotComeUp(problem)
    return await run_command(argv, env, session.signals, deathsig=deathsig)


async def _shell(session: Session) -> int:
    vm = session.options.vm
    shell = os.environ.get("SHELL") or "/bin/sh"
    session.terminal.say(f"a shell as seen from {vm}; `exit` or Ctrl-D ends it")
    # bash sets PS1 itself from its start-up files, but leaves PROMPT_COMMAND alone.
    os.environ["PROMPT_COMMAND"] = f'PS1="[{vm}] ${{PS1#\\[{vm}\\] }}"'
    os.environ["PS1"] = f"[{vm}] $ "
    session.layout.make_vm_folders(vm)
    os.chdir(session.layout.vm(vm))
    # A shell ends by SIGHUP when its terminal, or here its machine, is gone; it ignores SIGTERM.
    return await _run(session, [shell, "-i"], deathsig="HUP")
