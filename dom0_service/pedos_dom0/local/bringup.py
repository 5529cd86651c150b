"""Starting and stopping the whole system: the lock, the machine, dom0's service, autostart."""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from pedos_host.folder_lock import FolderHeld, hold_folder, make_private
from pedos_host.system_errors import what_is_wrong
from pedos_host.unix import connect_unix
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.events import REFUSED, refusal
from pedos_protocol.names import escaped_text
from pedos_vchan.peer import Peer, open_peer

from pedos_dom0.local import sound_programs
from pedos_dom0.local.config import Config
from pedos_dom0.local.layout import Layout, sweep
from pedos_dom0.local.machine import Machine, Programs
from pedos_dom0.local.supervise import Program, Supervisor
from pedos_dom0.local.words import in_words, too_few_descriptors, with_hint

logger = logging.getLogger(__name__)

# dom0's service starts within half a second on an idle machine; a busy one may take far longer.
READY_TIMEOUT = 30.0
# Longer than dom0's service takes at worst (a test adds it up): 5 + 30 until agents are there, 5
# until a new device is identified, 60 for dom0's user, if the policy says ask, 10 + 30 for the VM,
# 10 + 15 for a device that fails, 20 to ask which devices of the VM are in use, 20 + 20 to take
# them back, 20 to end the VM, 20 + 20 for its others, 20 + 20 to kill it, and 20 + 20 for what is
# left.
VM_START_TIMEOUT = 400.0
CALL_TIMEOUT = 10.0
# Seconds between two looks for things without an event: another process's "ready" in the lock file,
# or the end of its use of this machine.
LOOK_AGAIN = 0.02
# How long an agent that runs may take to report itself to dom0's service.
REPORT_TIMEOUT = 15.0

# What local mode needs beside Python, and the Debian package that contains it.
TOOLS = {
    "nbdkit": "nbdkit",
    "nbdfuse": "libnbd-bin",
    "fusermount3": "fuse3",
    "setpriv": "util-linux",
}
FUSE_DEVICE = Path("/dev/fuse")
# The meaning of each failure to open it, and what to do.
_FUSE = {
    errno.ENOENT: (
        "does not exist",
        "modprobe fuse   (in a container: give it the device {device})",
    ),
    errno.ENODEV: ("has no driver in this kernel", "modprobe fuse"),
    errno.ENXIO: ("has no driver in this kernel", "modprobe fuse"),
    errno.EACCES: (
        "is not this user's to open",
        "as root: chmod 666 {device}   (as udev has it everywhere)",
    ),
    errno.EPERM: (
        "is there, but may not be opened here, as in a container that was not given it",
        "give the container the device, as in: docker run --device {device} --cap-add SYS_ADMIN",
    ),
}
TAIL_LINES = 5


class CannotComeUp(Exception):  # noqa: N818 - says what happened
    """`str()` is for the user: what is missing or broken, and what to do. It may have several
    lines."""


class LockHeld(Exception):  # noqa: N818
    """Another pedos-local is running this DIR; `pid` may be None while it is just starting."""

    def __init__(self, pid: int | None, ready: bool) -> None:
        super().__init__(pid, ready)
        self.pid = pid
        self.ready = ready  # the whole system is up there


def check_tools(layout: Layout, config: Config) -> None:
    """CannotComeUp naming everything that is missing, not only the first."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    lines = []
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        lines.append(f"not installed: {', '.join(missing)}\n  try:  apt-get install {packages}")
    if (problem := _fuse_problem()) is not None:
        lines.append(problem)
    lines += sound_programs.problems(layout, config.sounds)
    if lines:
        raise CannotComeUp("\n".join(lines))


def _fuse_problem() -> str | None:
    """Why this user cannot open FUSE's device, and what to do; None if it works.

    The function opens it, because a container may have the device and its mode and yet be denied
    access.
    """
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        what, hint = _FUSE.get(
            error.errno or 0, (f"cannot be opened: {error.strerror}", f"ls -l {FUSE_DEVICE}")
        )
    else:
        mounter = shutil.which("fusermount3")
        if os.geteuid() == 0 or mounter is None or os.stat(mounter).st_mode & stat.S_ISUID:
            return None
        what, hint = (
            f"can be opened, but {mounter} is not setuid root and so cannot mount for this user",
            f"as root: chmod u+s {mounter}   (as the Debian package fuse3 has it)",
        )
    return (
        f"{FUSE_DEVICE} {what}; without FUSE no VM can have a block file\n"
        f"  try:  {hint.format(device=FUSE_DEVICE)}"
    )


class Lock:
    """DIR, held by its one machine process; run/lock contains the pid, then "ready"."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    @contextmanager
    def hold(cls, layout: Layout) -> Iterator[Lock]:
        """LockHeld when another process has it. The kernel frees it when its holder dies."""
        layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                # The lock protects this: a second machine would clear away the mounts here.
                make_private(layout.vms)
                stack.enter_context(hold_folder(layout.vms))
            except FolderHeld as held:
                pid, ready = read_lock(layout.lock)
                raise LockHeld(pid or held.pid, ready) from None
            fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            lock = cls(fd)
            lock.set_ready(False)
            yield lock
            os.ftruncate(fd, 0)

    def set_ready(self, ready: bool) -> None:
        """Whether everything is up, for processes that wait to use this machine."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n{'ready' if ready else ''}\n".encode(), 0)


def read_lock(path: Path) -> tuple[int | None, bool]:
    """(pid of the holder, is it ready); (None, False) while it writes, or without a holder.
    OSError if it cannot be read."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None, False
    try:
        pid, ready, *_ = text.split("\n")
        os.kill(int(pid), 0)  # the words of a killed holder do not count
    except PermissionError:
        pass  # alive, and another user's
    except (ProcessLookupError, ValueError, OverflowError):
        return None, False
    return int(pid), ready == "ready"


@dataclass(frozen=True, slots=True)
class LocalPrograms:
    """The real command lines."""

    layout: Layout
    config: Config
    verbose: bool = False

    def dom0(self) -> Program:
        layout = self.layout
        options = {
            "driver": "local",
            "machine": layout.machine_socket,
            "vchan": layout.vchan,
            "socket": layout.dom0_socket,
            "desktop-socket": layout.desktop_socket,
            # The user's own: on a Xen host it is a group that the package makes.
            "desktop-group": os.getgid(),
            "dom0-agent": layout.dom0_agent_socket,
            "state": layout.state,
            "policy": layout.policy,
            "vms-dir": layout.facts,
        }
        argv = _command("pedos_dom0", options, self.verbose or self.config.dom0_verbose)
        return Program("dom0", argv, layout.log("dom0"), env={"PEDOS_FAULTNAME": "dom0"})

    def dom0_agent(self) -> Program:
        extra = {"control-socket": self.layout.dom0_agent_socket}
        # Its own client socket: in dom0, qvm-* talk to the service itself.
        socket = self.layout.run / "vms" / "dom0.sock"
        return self._agent("dom0", 0, socket, extra, self.config.dom0_verbose, "dom0-agent")

    def agent(self, name: str, domid: int) -> Program:
        socket = self.layout.client_socket(name)
        return self._agent(name, domid, socket, {}, self._verbose(name), name)

    def sound(self, name: str) -> Sequence[Program]:
        sound = self.config.sounds.get(name)
        if sound is None:
            return ()
        verbose = self.verbose or self._verbose(name)
        return sound_programs.programs(self.layout, name, sound, verbose=verbose)

    def keeper(self, name: str, listener: int) -> Program:
        options = {
            "services": self.layout.services(name),
            "configurations": self.layout.configurations(name),
            "listen": listener,
        }
        argv = _command("pedos_keeper", options, self.verbose or self._verbose(name))
        env = client_environment(self.layout, self.config, name)
        env["HOME"] = str(self.layout.home(name))
        return Program(f"{name}.keeper", argv, self.layout.log(f"{name}.keeper"), env=env)

    def _verbose(self, name: str) -> bool:
        if name == "dom0":
            return self.config.dom0_verbose
        return any(vm.verbose for vm in self.config.vms if vm.name == name)

    def _agent(
        self,
        name: str,
        domid: int,
        socket: Path,
        extra: dict[str, Path],
        verbose: bool,
        log: str,
    ) -> Program:
        options: dict[str, object] = {
            "driver": "local",
            "vm": name,
            "domid": domid,
            "vchan": self.layout.vchan,
            "socket": socket,
            "devices": self.layout.devices(name),
            "dev": self.layout.dev(name),
            "keeper": self.layout.keeper_socket(name),
            "call-socket": self.layout.call_socket(name),
            **extra,
        }
        if name in self.config.sounds:
            options["sound-socket"] = self.layout.sound_socket(name)
        argv = _command("pedos_agent", options, self.verbose or verbose)
        return Program(log, argv, self.layout.log(log), env={"PEDOS_FAULTNAME": f"agent:{name}"})


def _command(module: str, options: dict[str, Any], verbose: bool) -> list[str]:
    # -P: a file in the user's current folder must not shadow a module of ours.
    argv = [sys.executable, "-P", "-m", module]
    for option, value in options.items():
        argv += [f"--{option}", str(value)]
    return [*argv, "-v"] if verbose else argv


@dataclass(frozen=True, slots=True)
class Up:
    """A running machine, as `bring_up` yields it."""

    machine: Machine
    problems: tuple[str, ...]  # VMs that did not start, one text each


@asynccontextmanager
async def bring_up(
    layout: Layout,
    config: Config,
    programs: Programs,
    lock: Lock,
    on_machine: Callable[[Machine], None] = lambda _machine: None,
) -> AsyncIterator[Up]:
    """Starts everything, yields when all VMs reported, and stops everything at the end.

    `on_machine` gets the machine early, for a caller that may have to end it by force. CannotComeUp
    if dom0's service does not start; a VM that fails is only a problem in the answer. Cancellation
    does not interrupt the stopping; each program's grace time bounds it.
    """
    if (problem := too_few_descriptors(len(config.names))) is not None:
        raise CannotComeUp(problem)
    try:
        layout.make_folders(config.names)
        for line in sweep(layout):
            logger.info("%s", line)
        vms = [(vm.name, vm.autostart) for vm in config.vms]
        machine = Machine(layout, vms, programs, restarts=config.restarts)
        on_machine(machine)
        listener = await machine.listen()
    except OSError as error:
        raise CannotComeUp(in_words(error, str(layout.run))) from error
    # Raised only outside of the nursery, which would wrap it into an exception group.
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        # A cancellation must not end the machine: only the machine can stop its VMs.
        with trio.CancelScope(shield=True):
            await nursery.start(machine.run, listener)
        try:
            problem = await _wait_for_dom0(machine.dom0)
            if problem is None:
                problems = await _autostart(layout, config)
                lock.set_ready(True)
                yield Up(machine, tuple(problems))
            else:
                failure = CannotComeUp(problem)
        except Exception as error:
            failure = error
        finally:
            with trio.CancelScope(shield=True):
                # A full disk leaves the file empty, which means "not ready" as well.
                with suppress(OSError):
                    lock.set_ready(False)
                await machine.stop()
                for line in sweep(layout):  # sockets of agents, which are removed only here
                    logger.debug("%s", line)
    if failure is not None:
        raise failure


async def _wait_for_dom0(dom0: Supervisor) -> str | None:
    """None when it is ready, or why it will not be."""
    with trio.move_on_after(READY_TIMEOUT):
        await dom0.ready_or_ended()
    if dom0.ready.is_set():
        return None
    why = dom0.gave_up or f"dom0's service was not ready within {READY_TIMEOUT:.0f} s"
    return with_hint(why, dom0.hint) + tail(dom0.program.log, dom0.log_start)


def tail(log: Path, start: int | None) -> str:
    """The last lines of a log from byte `start` on, indented, to append to a message; nothing of a
    program that was never started (None)."""
    if start is None:
        return ""
    try:
        text = log.read_bytes()[start:].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"\n  ({what_is_wrong(error)})"
    lines = text.removesuffix("\n").split("\n")[-TAIL_LINES:] if text else []
    return "".join(f"\n  {log.name}: {escaped_text(line)}" for line in lines)


async def _autostart(layout: Layout, config: Config) -> list[str]:
    names = [vm.name for vm in config.vms if vm.autostart]
    async with service(layout) as dom0:
        problems = []
        failed = set[str]()
        for name in names:
            problem = await start_vm(dom0, name)
            if problem is not None:
                _log_lines(problem)
                problems.append(problem)
                failed.add(name)
        # dom0's own devices are known once its own agent has reported.
        if not await _look_until(functools.partial(_dom0_reported, dom0)):
            problems.append("dom0's own agent did not report, so dom0's devices are missing")
            logger.error("%s", problems[-1])
        speaking = [
            vm.name
            for vm in config.vms
            if vm.name in names and vm.name not in failed and vm.sound and vm.sound.microphone
        ]
        if not await _look_until(functools.partial(_microphones_are_there, dom0, speaking)):
            what = f"not every microphone of {', '.join(speaking)} is there"
            problems.append(with_hint(what, f"tail {layout.log('*.sound*')}"))
            _log_lines(problems[-1])
        for problem in await _since_then(dom0, [name for name in names if name not in failed]):
            _log_lines(problem)
            problems.append(problem)
        return problems


async def _since_then(dom0: Peer, names: list[str]) -> list[str]:
    """The state of the running system, and whether any device may be attached."""
    listing = await dom0.call("vm.list", {}, timeout=CALL_TIMEOUT)
    agents = {vm["name"] for vm in listing["vms"] if vm["agent"]}
    problems = [
        f"{name} came up, but its agent has ended again" for name in names if name not in agents
    ]
    policy = (await dom0.call("service.status", {}, timeout=CALL_TIMEOUT))["policy"]
    if not policy["ok"]:
        what = "the policy has an error, and denies everything"
        problems.append(with_hint(what, "qvm-policy status"))
    return problems


def _log_lines(text: str) -> None:
    for line in text.split("\n"):  # a record is one line
        logger.error("%s", line)


async def start_vm(dom0: Peer, name: str) -> str | None:
    """Starts a VM through dom0's service, with its assignments. None, or why it did not start."""
    try:
        await dom0.call("vm.start", {"vm": name}, timeout=VM_START_TIMEOUT)
        reported = await _look_until(functools.partial(agent_of, dom0, name))
    except CallError as error:
        return with_hint(f"{name} does not start: {error.message}", error.data.get("hint"))
    if not reported:
        return f"{name} started, but its agent did not report within {REPORT_TIMEOUT:.0f} s"
    return None


async def _look_until(look: Callable[[], Awaitable[bool]]) -> bool:
    """Asks dom0's service repeatedly, about things for which it sends no event."""
    with trio.move_on_after(REPORT_TIMEOUT):
        while not await look():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(LOOK_AGAIN)
        return True
    return False


async def _dom0_reported(dom0: Peer) -> bool:
    status = await dom0.call("service.status", {}, timeout=CALL_TIMEOUT)
    return "dom0" in status["agents"]


async def _microphones_are_there(dom0: Peer, names: list[str]) -> bool:
    """Can those VMs lend the microphones of their servers? These answer after the VMs' starts."""
    if not names:
        return True
    wanted = {"device_class": "mic", "vms": names, "exclude": [], "after": None}
    listing = await dom0.call("device.list", wanted, timeout=CALL_TIMEOUT)
    free = {each["backend"] for each in listing["devices"] if not each.get("busy")}
    return free.issuperset(names)


async def agent_of(dom0: Peer, name: str) -> bool:
    """Does this VM's agent serve? CallError not_found when there is no such VM."""
    listing = await dom0.call("vm.list", {}, timeout=CALL_TIMEOUT)
    for vm in listing["vms"]:
        if vm["name"] == name:
            return bool(vm["agent"])
    raise CallError("not_found", f"no VM named {name!r}", {})


@asynccontextmanager
async def service(layout: Layout) -> AsyncIterator[Peer]:
    """A connection to dom0's service, like that of `qvm-*` in dom0. CannotComeUp if there is
    none."""
    refusals: list[CallError] = []

    async def hear(_peer: Peer, params: dict[str, Any]) -> None:
        refusals.append(refusal(params))

    try:
        stream = await connect_unix(layout.dom0_socket)
        async with open_peer(
            stream,
            program="pedos-local",
            handlers={},
            notices={REFUSED: hear},
            name="dom0's service",
        ) as peer:
            yield peer
    except (OSError, trio.BrokenResourceError, ProtocolError, CallError) as error:
        for said in (*refusals, error):
            if isinstance(said, CallError):
                raise CannotComeUp(f"dom0's service says: {said.message}") from error
        raise CannotComeUp(f"dom0's service does not answer: {what_is_wrong(error)}") from error


def client_environment(layout: Layout, config: Config, vm: str) -> dict[str, str]:
    """The environment in which `qvm-*`, and programs that record and play, work as seen from `vm`
    (or dom0)."""
    path = os.environ.get("PATH", os.defpath)
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{path}",
        "PEDOS_SOCKET": str(layout.client_socket(vm)),
        "PEDOS_VM": vm,
        **sound_programs.environment(layout, vm, config.sounds.get(vm)),
    }
    # Where services are called follows from the first; one of another system must not stay.
    environment.pop("PEDOS_CALL_SOCKET", None)
    # dom0's files: no VM has them.
    for name, where in (("PEDOS_POLICY_PATH", layout.policy), ("PEDOS_AUDIT", layout.audit)):
        environment.pop(name, None)
        if vm == "dom0":
            environment[name] = str(where)
    return environment
