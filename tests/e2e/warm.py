"""`pedos-local up`, whose service and agents start within a tenth of the time.

    python -P warm.py up FOLDER PADDING

Most of a start is Python reading the same modules once more, and tests that kill programs start
hundreds. Here a second process, the nest, has read them once. What pedos-local starts comes out of
the nest by fork(2): a process of its own, pedos-local's child, with the descriptors, environment,
session, command line and parent-death signal that exec(2) would have given it, and then runs its
module from the first line. All other programs, and each end, are as ever.

The padding is what /proc shows of a command line: a process can overwrite its own, not lengthen it.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import os
import pickle
import runpy
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

WARM = ("pedos_dom0", "pedos_agent")
PADDING = "-" * 8192
REQUEST_MAX = 65536
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


class Hatched:
    """As much of subprocess.Popen as pedos_host.children needs of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def hatch(nest: socket.socket) -> tuple[list[str], dict[str, str]] | None:
    """The nest: None when pedos-local has ended. In each process that comes out of it, what that
    is to run, as which it is set up by then."""
    os.setsid()
    show_as(["warm"])
    local = os.getppid()
    while True:
        request, fds, _, _ = socket.recv_fds(nest, REQUEST_MAX, 2)
        if not request:
            return None
        reaped, go_on = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork() != 0:
                os._exit(0)
            # Without the one between, pedos-local is the parent: it is the next that takes orphans.
            os.close(go_on)
            os.read(reaped, 1)
            os.close(reaped)
            argv, env = pickle.loads(request)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != local:
                os._exit(125)
            os.setsid()
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0)
            for fd, number in zip(fds, (1, 2), strict=True):
                os.dup2(fd, number)
                os.close(fd)
            nest.send(str(os.getpid()).encode())
            nest.close()
            return argv, env
        os.waitpid(between, 0)
        for fd in (reaped, go_on, *fds):
            os.close(fd)


def start_from(nest: socket.socket, cold: Any, child: Any) -> Any:
    """pedos_host.children.start_child, for WARM; `cold` for all else."""

    def start_child(
        argv: Sequence[str],
        *,
        stdout: Any,
        stderr: Any,
        env: Mapping[str, str],
        new_session: bool,
        deathsig: str,
    ) -> Any:
        if [*argv[:3]] != [sys.executable, "-P", "-m"] or argv[3] not in WARM:
            return cold(
                argv,
                stdout=stdout,
                stderr=stderr,
                env=env,
                new_session=new_session,
                deathsig=deathsig,
            )
        assert new_session
        assert deathsig == "KILL"
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            fds = array.array("i", [stdout.fileno(), stderr.fileno()])
            socket.send_fds(nest, [pickle.dumps(([*argv], {**env}))], fds)
            pid = int(nest.recv(100))
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
        return child(Hatched(pid), os.path.basename(argv[0]))

    return start_child


def main() -> object:
    gc.disable()  # as the programs have it while they read their modules
    from pedos_dom0.local import cli, supervise
    from pedos_host import children, faultpoints

    for module in WARM:
        importlib.import_module(f"{module}.__main__")
        del sys.modules[f"{module}.__main__"]  # it is run, and not imported
    gc.freeze()  # no program looks through what all have, nor copies it by that
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        hatched = hatch(theirs)
        if hatched is None:
            os._exit(0)
        argv, env = hatched
        show_as(argv)
        os.environ.clear()
        os.environ.update(env)
        importlib.reload(faultpoints)  # it reads the environment once
        sys.orig_argv, sys.argv = argv, argv[3:]
        if "sitecustomize" in sys.modules:  # it may depend on the program
            importlib.reload(sys.modules["sitecustomize"])
        runpy.run_module(argv[3], run_name="__main__", alter_sys=True)
        return 0
    theirs.close()
    gc.enable()
    supervise.start_child = start_from(ours, children.start_child, children.Child)
    sys.argv = ["pedos-local", *sys.argv[1:-1]]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
