"""Programs of Python that start within a tenth of the time.

Most of a start is Python reading the same modules once more, and tests start thousands. Here a
process, the nest, has read them once. A program comes out of it by fork(2): a process of its own, a
child of the one that has asked, with the descriptors, environment, folder, session, command line
and parent-death signal that exec(2) would have given it, and then runs its module or launcher from
the first line. All else, and each end, is as ever.

    with Popen([BIN / "qvm-device", "block"], stdout=PIPE) as command: ...

is subprocess.Popen, not for tests of a start itself. It is exec(2) as ever for other programs, and
where variables differ that Python reads as it starts: the nest has what Python made of its own.

    [*LOCAL, "up", FOLDER]

is a `pedos-local` with a nest of its own, out of which its service and agents come.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import os
import pickle
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, AnyStr

import pedos_cli

if TYPE_CHECKING:
    from pedos_host.children import Child

LOCAL = (sys.executable, "-P", __file__)
DAEMONS = ("pedos_dom0", "pedos_agent")
MODULES = (
    *("pedos_dom0.local.cli", "pedos_dom0.local.supervise"),
    *(f"{name}.__main__" for name in DAEMONS),
    *(f"pedos_cli.{module.name}" for module in pkgutil.iter_modules(pedos_cli.__path__)),
)
#: What /proc shows of a command line: a process can overwrite its own, not lengthen it.
PADDING = "-" * 8192
REQUEST_MAX, FDS_MAX = 131072, 16
#: Beginnings of the variables that Python reads as it starts.
OF_PYTHON = ("PYTHON", "LC_", "LANG")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def show_as(argv: Sequence[str]) -> None:
    """The command line of this process, as /proc has it, for programs that look for it there."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    shown = b"".join(os.fsencode(word) + b"\0" for word in argv)
    assert len(shown) < end - start, "the padding is too short"
    ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def hatch(nest: socket.socket) -> list[str] | None:
    """The nest: None when who asks has ended. In each process that comes out of it, what that is to
    run, as which it is set up by then."""
    os.setsid()
    show_as(["warm"])
    asker = os.getppid()
    while True:
        request, fds, _, _ = socket.recv_fds(nest, REQUEST_MAX, FDS_MAX)
        if not request:
            return None
        reaped, go_on = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork() != 0:
                os._exit(0)
            # Without the one between, who asks is the parent: it is the next that takes orphans.
            os.close(go_on)
            os.read(reaped, 1)
            os.close(reaped)
            argv, env, cwd, numbers, new_session, deathsig = pickle.loads(request)
            prctl(PR_SET_PDEATHSIG, deathsig)
            if os.getppid() != asker:
                os._exit(125)
            if new_session:
                os.setsid()
            nest.send(str(os.getpid()).encode())
            nest.close()
            become(argv, env, cwd, dict(zip(numbers, fds, strict=True)))
            return argv
        os.waitpid(between, 0)
        for fd in (reaped, go_on, *fds):
            os.close(fd)


def become(argv: list[str], env: Mapping[str, str], cwd: str, fds: Mapping[int, int]) -> None:
    """What a program finds as it starts; `fds` by the numbers that it knows them by."""
    above = max(fds) + 1
    kept = {number: os.dup(fd) for number, fd in fds.items()}
    while low := [number for number, fd in kept.items() if fd < above]:
        kept.update({number: os.dup(kept[number]) for number in low})
    os.closerange(3, above)
    for number, fd in kept.items():
        os.dup2(fd, number)
    os.closerange(above, max(kept.values()) + 1)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    show_as(argv)
    sys.orig_argv = argv


def live(argv: list[str]) -> None:
    """That program, to its end: without taking all modules apart, which is most of a short life."""
    status = 0
    try:
        run(argv)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        status = ended.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def run(argv: list[str]) -> None:
    """That program, from its first line."""
    from pedos_host import faultpoints

    importlib.reload(faultpoints)  # it reads the environment once
    if "sitecustomize" in sys.modules:  # it may depend on the program
        importlib.reload(sys.modules["sitecustomize"])
    gc.enable()
    if argv[0] == sys.executable:
        argv = [word for word in argv[1:] if word != "-P"]
    if argv[0] == "-m":
        sys.argv = argv[1:]
        is_package = hasattr(sys.modules.get(argv[1]), "__path__")
        sys.modules.pop(f"{argv[1]}.__main__" if is_package else argv[1], None)  # it is run
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == __file__:
        local(argv[1:])
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def is_known(argv: Sequence[str | Path]) -> bool:
    """Whether it is a launcher, a module or LOCAL, with which a nest can begin."""
    if argv[0] == sys.executable:
        words = [word for word in argv[1:] if word != "-P"]
        return words[0] in ("-m", __file__)
    with open(argv[0], "rb") as file:
        return sys.executable.encode() in file.readline(1000)


def for_python(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(OF_PYTHON)}


class Nest:
    """How this process asks its nest."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._lock = threading.Lock()
        self.for_python = for_python(os.environ)

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        fds: Mapping[int, int],
        *,
        cwd: str | None = None,
        new_session: bool = False,
        deathsig: int = 0,
    ) -> int:
        """The pid of a new child. `fds` are ours, by the child's numbers."""
        words = ([*argv], {**env}, cwd or os.getcwd(), [*fds], new_session, deathsig)
        with self._lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self._socket, [pickle.dumps(words)], array.array("i", fds.values()))
                answer = self._socket.recv(100)
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0)
        assert answer, "the nest is gone"
        return int(answer)

    def close(self) -> None:
        self._socket.close()


@functools.cache
def our_nest() -> Nest:
    """That of this process, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # Its standard streams are no files, as those of most programs here.
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, "nest", str(theirs.fileno()), PADDING],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    nest = Nest(ours)

    def end() -> None:
        nest.close()
        process.communicate()

    atexit.register(end)
    return nest


class Popen(subprocess.Popen[AnyStr]):
    """As that is, for launchers and for [sys.executable, "-P", "-m", MODULE]."""

    def _execute_child(
        self,
        args: Sequence[str | Path],
        executable: object,
        preexec_fn: object,
        close_fds: object,
        pass_fds: Sequence[int],
        cwd: str | Path | None,
        env: Mapping[str, str] | None,
        startupinfo: object,
        creationflags: object,
        shell: bool,
        *more: Any,
    ) -> None:
        assert not (executable or preexec_fn or shell), "this is no exec(2)"
        nest = our_nest()
        is_same = for_python(os.environ if env is None else env) == nest.for_python
        if not is_same or not is_known(args):
            padding = (PADDING,) if (*args[:3],) == LOCAL else ()
            before = (executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo)
            super()._execute_child([*args, *padding], *before, creationflags, shell, *more)
            return
        *pipes, _restore_signals, _gid, _gids, _uid, _umask, new_session, _group = more
        stdin, _, _, stdout, _, stderr = pipes
        fds = {number: number for number in pass_fds}
        fds |= {n: n if fd == -1 else fd for n, fd in enumerate((stdin, stdout, stderr))}
        self.pid = nest.start(
            [os.fsdecode(word) for word in args],
            os.environ if env is None else env,
            fds,
            cwd=None if cwd is None else os.fspath(cwd),
            new_session=new_session,
        )
        self._child_created = True
        self._close_pipe_fds(*pipes)


def finish(
    argv: Sequence[str | Path], *, send: AnyStr | None = None, timeout: float, **options: Any
) -> subprocess.CompletedProcess[AnyStr]:
    """As subprocess.run with `capture_output`, and `send` as its input."""
    if send is not None:
        options["stdin"] = subprocess.PIPE
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with Popen(argv, **options) as process:
        try:
            out, err = process.communicate(send, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Hatched:
    """As much of subprocess.Popen as pedos_host.children needs of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start_from(nest: Callable[[], Nest]) -> Callable[..., Child]:
    """pedos_host.children.start_child, which takes programs of Python out of this nest."""
    from pedos_host.children import Child, start_child

    def start(
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        stdout: Any = None,
        stderr: Any = None,
        env: Mapping[str, str] | None = None,
        new_session: bool = False,
        deathsig: str = "KILL",
        **more: Any,
    ) -> Child:
        if more or [*argv[:3]] != [sys.executable, "-P", "-m"] or argv[3] not in DAEMONS:
            return start_child(
                argv,
                pass_fds=pass_fds,
                stdout=stdout,
                stderr=stderr,
                env=env,
                new_session=new_session,
                deathsig=deathsig,
                **more,
            )
        with open(os.devnull, "rb") as nothing:
            fds = {number: number for number in pass_fds} | {0: nothing.fileno()}
            for number, file in ((1, stdout), (2, stderr)):
                fds[number] = number if file is None else file.fileno()
            pid = nest().start(
                argv,
                os.environ if env is None else env,
                fds,
                new_session=new_session,
                deathsig=signal.Signals[f"SIG{deathsig}"],
            )
        return Child(Hatched(pid), os.path.basename(argv[0]))  # type: ignore[arg-type]

    return start


def local(words: list[str]) -> None:
    """`pedos-local` with these words, and a nest of its own."""
    from pedos_dom0.local import cli, supervise

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        with contextlib.closing(theirs):
            argv = hatch(theirs)
        if argv is None:
            os._exit(0)
        live(argv)
    theirs.close()
    nest = Nest(ours)
    supervise.start_child = start_from(lambda: nest)
    sys.argv = ["pedos-local", *words]
    sys.exit(cli.main())


def main() -> None:
    gc.disable()  # as the programs have it while they read their modules
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # no program looks through what all have, nor copies it by that
    if sys.argv[1] != "nest":
        local(sys.argv[1:-1])
        return
    with socket.socket(fileno=int(sys.argv[2])) as nest:
        argv = hatch(nest)
    if argv is not None:
        live(argv)


if __name__ == "__main__":
    main()
