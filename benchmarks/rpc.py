"""Calls of services, against what one would do without them: spawning, ssh, gRPC, varlink.

A call here is a whole one: a program in one VM that asks dom0, whose policy decides, and a program
that is started in the other VM. VMs are processes of local mode, and all of it is on one processor
unless a row says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pedos_call

from .contenders import GRPC, GRPC_CONNECT, VARLINK
from .effort import EFFORT
from .peers.drive import PAYLOAD
from .processes import (
    ROOT,
    cores,
    guarded,
    kernel_seconds,
    pinned,
    processor_seconds,
    stat_fields,
    status_kib,
)
from .row import Row, median_of_rounds, medians_in_turn
from .rpc_system import BIN, SERVER, CallSystem, call_system

ECHO = "#!/bin/sh\necho\n"
TRUE = "/bin/true"
CALL = str(BIN / "qvm-call")
RUNS = 50  # of a program, in a round
CALLS = 500  # of the library, in a round
AT_ONCE = 64  # as many as one VM may make
SSH_TIMEOUT = 20.0
SETTLE_S = 3.0  # until channels that are too many to be kept idle are closed
# The allocator takes and returns its arenas in steps of up to a megabyte. One object kept for each
# of 50,000 calls would be more.
DRIFT_KIB = 1024


class Spawner:
    """Starts programs with three pipes, as programs that read what others write do."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        # Input that is at its end; one pipe takes all output, which is small.
        self.empty, writer = os.pipe()
        os.close(writer)

    def start(self, argv: Sequence[str], out: int) -> int:
        actions = [
            (os.POSIX_SPAWN_DUP2, self.empty, 0),
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, out, 2),
        ]
        return os.posix_spawn(argv[0], argv, self.environment, file_actions=actions)

    def run(self, argv: Sequence[str], status: int = 0) -> None:
        """Runs one to its end."""
        reader, writer = os.pipe()
        pid = self.start(argv, writer)
        os.close(writer)
        said = b"".join(iter(lambda: os.read(reader, 4096), b""))
        os.close(reader)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended != status:
            raise RuntimeError(f"{argv} ended with {ended}: {said.decode(errors='replace')}")

    def milliseconds(self, argv: Sequence[str], status: int = 0) -> Callable[[], float]:
        """Measures one round: the median of RUNS runs."""

        def once() -> float:
            start = time.perf_counter()
            self.run(argv, status)
            return (time.perf_counter() - start) * 1e3

        return lambda: statistics.median(once() for _ in range(RUNS))

    def many(self, units: Sequence[Sequence[str]], count: int) -> tuple[float, int]:
        """Runs `count` of each of the units, AT_ONCE of each at a time; the seconds that it took,
        and how many did not end with 0."""
        reader, writer = os.pipe()
        drain = threading.Thread(target=_read_all, args=(reader,))
        drain.start()
        failed = started = 0
        running = set()
        start = time.perf_counter()
        while started < count or running:
            while started < count and len(running) < AT_ONCE * len(units):
                running.update(self.start(argv, writer) for argv in units)
                started += 1
            pid, status = os.waitpid(-1, 0)
            running.discard(pid)
            failed += status != 0
        took = time.perf_counter() - start
        os.close(writer)
        drain.join()
        return took, failed


def _read_all(descriptor: int) -> None:
    while os.read(descriptor, 65536):
        pass
    os.close(descriptor)


# One call at a time


def warm_calls(system: CallSystem, script: str) -> list[Row]:
    """R1, R3 and R5."""
    spawner = Spawner(system.environment("work"))
    with ssh() as hosts:
        figures = medians_in_turn(
            {
                "call": spawner.milliseconds([CALL, SERVER, "bench.Echo"]),
                "denied": spawner.milliseconds([CALL, SERVER, "bench.Denied"], status=126),
                "true": spawner.milliseconds([TRUE]),
                "script": spawner.milliseconds([script]),
                **{name: spawner.milliseconds(argv) for name, argv in hosts.items()},
            }
        )
    detail = {f"{name}_ms": value for name, value in figures.items()}
    spawns = figures["true"] + figures["script"]

    def row(gate: str, what: str, figure: float, limit: float) -> Row:
        return Row(gate, what, figure, limit, "x", detail)

    return [
        row(
            "R1",
            "a warm call of a script, against spawning true and it",
            figures["call"] / spawns,
            2.2,
        ),
        row("R3", "a denied call, against spawning true", figures["denied"] / figures["true"], 2),
        row("R5", "a warm call, against ssh true", figures["call"] / figures["ssh"], 0.1),
        row("R5", "the same, with ControlMaster", figures["call"] / figures["master"], 0.5),
    ]


@contextlib.contextmanager
def ssh() -> Iterator[dict[str, list[str]]]:
    """The command lines of `ssh true`: to a server on a Unix socket of its own, which is how one
    that is activated by a socket runs, and over a connection that is there."""
    with tempfile.TemporaryDirectory(prefix="pedos-bench-ssh-") as name:
        folder = Path(name)
        for key in ("host", "user"):
            made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
            subprocess.run(made, check=True)
        (folder / "user.pub").rename(folder / "authorized")
        server = {
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            # bash takes this for a shell in a shell, and reads no .bashrc, which may take long.
            "SetEnv": "SHLVL=1",
            "LogLevel": "QUIET",
        }
        (folder / "sshd_config").write_text(
            "".join(f"{key} {value}\n" for key, value in server.items())
        )
        # sshd has to be called by its whole path; it is in sbin, which is not on every user's.
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "/usr/sbin/sshd"
        proxy = f"{sshd} -i -f {folder}/sshd_config"
        client = {
            "ProxyCommand": proxy,
            "IdentityFile": folder / "user",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
        }
        (folder / "ssh_config").write_text(
            "".join(f"{key} {value}\n" for key, value in client.items())
        )
        plain = [shutil.which("ssh") or "ssh", "-F", str(folder / "ssh_config"), "bench"]
        master = [*plain[:-1], "-S", str(folder / "control"), plain[-1]]
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd's unit has it made
        held = subprocess.Popen(guarded([*master[:-1], "-M", "-N", master[-1]]))
        try:
            asked = [*master[:-1], "-q", "-O", "check", master[-1]]
            deadline = time.monotonic() + SSH_TIMEOUT
            while subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode:
                if time.monotonic() > deadline or held.poll() is not None:
                    raise RuntimeError("ssh does not reach its server; run: tools/setup bench")
                time.sleep(0.05)
            yield {"ssh": [*plain, "true"], "master": [*master, "true"]}
        finally:
            held.kill()
            held.wait()


# A service that runs already


def library_calls(system: CallSystem) -> list[Row]:
    """R4: the library calls a service that is a socket; each call is a new connection, which policy
    has allowed. So gRPC and varlink connect for each call as well; what gRPC takes on a channel
    that is open already is in the detail."""
    path = str(system.folder / "run" / "vms" / "work.calls")
    sent = PAYLOAD.encode()

    def call() -> None:
        done = pedos_call.call(SERVER, "bench.Socket", input=sent, path=path)
        if done.stdout != sent:
            raise RuntimeError(f"the call came to {done}")

    def calls() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS

    with served(system) as service:
        calls()
        spent = time_of_programs(
            {**system.programs(), "caller": os.getpid(), "service": service}, calls
        )
        figures = medians_in_turn(
            {
                "call": calls,
                "grpc": lambda: GRPC_CONNECT(1, CALLS),
                "grpc_open": lambda: GRPC(1, CALLS),
                "varlink": lambda: VARLINK(1, CALLS),
            }
        )
    detail = {f"{name}_ms": value * 1e3 for name, value in {**figures, **spent}.items()}
    whats = {"grpc": ("grpc.aio, which connects", 0.6), "varlink": ("varlink, which connects", 2)}
    return [
        Row(
            "R4", f"a call of a socket service by the library, against {what}",
            figures["call"] / figures[name], limit, "x", detail,
        )
        for name, (what, limit) in whats.items()
    ]  # fmt: skip


def time_of_programs(programs: Mapping[str, int], calls: Callable[[], object]) -> dict[str, float]:
    """Seconds of processor time that each took of one of CALLS, and all of them in the kernel."""
    before = {name: processor_seconds(pid) for name, pid in programs.items()}
    in_kernel = sum(map(kernel_seconds, programs.values()))
    calls()
    in_kernel = sum(map(kernel_seconds, programs.values())) - in_kernel
    spent = {name: processor_seconds(pid) - before[name] for name, pid in programs.items()}
    return {name: each / CALLS for name, each in {**spent, "kernel": in_kernel}.items()}


@contextlib.contextmanager
def served(system: CallSystem) -> Iterator[int]:
    """The service bench.Socket, a program of its own, whose number this gives."""
    place = system.folder / "vms" / SERVER / "services.d" / "bench.Socket"
    program = [sys.executable, "-c", "from benchmarks.rpc import _serve; _serve()", str(place)]
    serving = subprocess.Popen(guarded(program), cwd=ROOT)
    try:
        deadline = time.monotonic() + SSH_TIMEOUT
        while not place.exists():
            if time.monotonic() > deadline or serving.poll() is not None:
                raise RuntimeError("the service does not listen")
            time.sleep(0.01)
        yield serving.pid
    finally:
        serving.kill()
        serving.wait()


def _serve() -> None:
    def answer(call: pedos_call.Served) -> None:
        while data := call.stream.recv(4096):
            call.stream.sendall(data)

    pedos_call.serve(sys.argv[1], answer)


# Many at once, and for long


def at_once(system: CallSystem, script: str) -> list[Row]:
    """R9: on all processors."""
    spawner = Spawner(system.environment("work"))
    count = EFFORT.service_calls
    call = [CALL, SERVER, "bench.Echo"]
    spawner.many([call], count // 20)
    took, failed = spawner.many([call], count)
    pairs, _ = spawner.many([[TRUE], [script]], count // 4)
    scripts, _ = spawner.many([[script]], count // 4)
    rates = {
        "calls_per_s": count / took,
        "pairs_per_s": count // 4 / pairs,
        "scripts_per_s": count // 4 / scripts,
    }
    what = f"calls that fail, of {count:,}, {AT_ONCE} at once"
    return [
        Row("R9", what, failed, 0, "", rates),
        Row(
            "R9", "calls a second, against spawns of true and the script a second",
            rates["calls_per_s"] / rates["pairs_per_s"], 0.4, "x", rates, at_least=True,
        ),
    ]  # fmt: skip


def _resources(pid: int) -> dict[str, int]:
    """What a process has: descriptors, threads, own memory; children that nobody has waited for."""
    zombies = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                zombies += stat_fields(child)[0] == "Z"
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "zombies": zombies,
        "kib": status_kib(pid, "RssAnon"),
    }


def drift(system: CallSystem) -> list[Row]:
    """R11: what grows in the second half of many calls, in the program where it grows most."""
    spawner = Spawner(system.environment("work"))
    half = EFFORT.service_calls_long // 2
    call = [CALL, SERVER, "bench.Echo"]
    spawner.many([call], half)
    time.sleep(SETTLE_S)
    programs = system.programs()
    before = {name: _resources(pid) for name, pid in programs.items()}
    spawner.many([call], half)
    time.sleep(SETTLE_S)
    if system.programs() != programs:
        raise RuntimeError(f"a program was restarted: {programs} became {system.programs()}")
    after = {name: _resources(pid) for name, pid in programs.items()}
    rows = []
    for what, limit, unit in (
        ("descriptors", 0, ""), ("threads", 0, ""), ("zombies", 0, ""), ("kib", DRIFT_KIB, "KiB"),
    ):  # fmt: skip
        grown = {name: after[name][what] - before[name][what] for name in programs}
        named = "memory" if unit else what
        name = f"{named} more after the second half of {2 * half:,} calls"
        rows.append(Row("R11", name, max(grown.values()), limit, unit, {**grown}))
    return rows


def flooded(system: CallSystem) -> list[Row]:
    """R14: calls of one VM while another makes as many as it can, from a processor that it and its
    agent have to themselves."""
    _, theirs = cores()
    spawner = Spawner(system.environment("other"))
    one = [CALL, SERVER, "bench.Echo"]
    agent = system.programs()["pedos_agent:work"]
    for thread in Path(f"/proc/{agent}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {theirs})
    alone = median_of_rounds(spawner.milliseconds(one))
    with flood(system, theirs):
        beside = median_of_rounds(spawner.milliseconds(one))
    detail = {"alone_ms": alone, "beside_ms": beside}
    return [
        Row("R14", "a call while another VM floods, against alone", beside / alone, 2, "x", detail)
    ]


@contextlib.contextmanager
def flood(system: CallSystem, core: int) -> Iterator[None]:
    """Another process calls from work, over and over, AT_ONCE at a time, on that processor."""
    program = [sys.executable, "-c", "from benchmarks.rpc import _flood; _flood()"]
    flooding = subprocess.Popen(
        ["taskset", "-c", str(core), *guarded(program)], cwd=ROOT, env=system.environment("work"),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert flooding.stdout is not None
        if flooding.stdout.readline() != b"flooding\n":
            raise RuntimeError("the flood has ended")
        yield
    finally:
        flooding.kill()
        flooding.wait()


def _flood() -> None:
    spawner = Spawner(os.environ)
    calls = [[CALL, SERVER, "bench.Echo"]]
    spawner.many(calls, AT_ONCE)
    print("flooding", flush=True)
    while True:
        spawner.many(calls, AT_ONCE * 100)


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        script = Path(folder) / "echo"
        script.write_text(ECHO)
        script.chmod(0o755)
        with pinned(), call_system({"bench.Echo": ECHO}) as system:
            rows = warm_calls(system, str(script)) + library_calls(system) + flooded(system)
        with call_system({"bench.Echo": ECHO}) as system:
            rows += at_once(system, str(script))
            rows += drift(system)
    return rows
