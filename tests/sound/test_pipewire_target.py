"""A borrowed microphone in a PipeWire session: what programs there see and hear of it."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_dom0.local.sound_server import MICROPHONE

from tests.compiled import compile_c
from tests.patience import PATIENCE

from .c_library import SOUND
from .hearing import FORMAT, Recorder, blocks, has_tone, is_silent, playing, record, tone
from .servers import OwnServer, each_kind, needs, sound_server

pytestmark = needs("pipewire")

NODE = "pedos_mic.laptop"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
SOURCES = ["target_pipewire", "pipewire_library", "playout", "fifo", "rate"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("target") / "target_program"
    packages = ["libpulse", "libpipewire-0.3"]
    found = subprocess.run(
        ["pkg-config", "--cflags", *packages], capture_output=True, text=True, check=True
    )
    # PipeWire's headers have warnings of their own.
    headers = [part.replace("-I", "-isystem", 1) for part in found.stdout.split()]
    sources = [SOUND / f"{name}.c" for name in SOURCES]
    command = ["gcc", *FLAGS, *SANITIZED, *headers, f"-I{SOUND}"]
    here = Path(__file__).with_name("target_program.c")
    compile_c([*command, here, *sources, "-lpulse", "-ldl", "-lm", "-o", built])
    return built


class Target:
    def __init__(self, program: Path, server: OwnServer, name: str, feed: object) -> None:
        self.server, self.name = server, name
        self.child = subprocess.Popen(
            [program, name, "Microphone of laptop"],
            env=server.environment(),
            stdin=subprocess.PIPE if feed is None else feed,  # type: ignore[call-overload]
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )

    def says(self, *lines: str) -> None:
        """Waits for its next lines, which have to be these."""
        assert self.child.stdout is not None
        for line in lines:
            ready = select.select([self.child.stdout], [], [], PATIENCE)[0]
            assert ready, f"{line!r} was not said"
            assert self.child.stdout.readline().decode().strip() == line

    def is_quiet(self) -> bool:
        return not select.select([self.child.stdout], [], [], 0)[0]

    def end(self) -> None:
        self.child.terminate()
        _, said = self.child.communicate(timeout=PATIENCE)
        assert (self.child.returncode, said.decode()) == (0, "")


@contextlib.contextmanager
def target(
    program: Path, server: OwnServer, *, name: str = NODE, feed: object = None
) -> Iterator[Target]:
    made = Target(program, server, name, feed)
    try:
        made.says("ready")
        server.wait_until(lambda: name in server.sources(), "the source is listed")
        yield made
        if made.child.returncode is None:
            made.end()
        server.wait_until(lambda: name not in server.sources(), "the source is gone")
    finally:
        made.child.kill()
        made.child.communicate()


@contextlib.contextmanager
def feeding(borrowed: Target) -> Iterator[None]:
    """A tone arrives meanwhile, 10 ms at a time and as fast as it is played."""
    stdin, is_over = borrowed.child.stdin, threading.Event()
    assert stdin is not None
    packet = tone(0.01)

    def feed() -> None:
        due = time.monotonic()
        while not is_over.wait(max(0.0, due - time.monotonic())):
            stdin.write(packet)
            due += 0.01

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        is_over.set()
        feeder.join()


@contextlib.contextmanager
def microphone_of(server: OwnServer) -> Iterator[object]:
    """What is said into a server's microphone, as samples."""
    command = ["parec", *FORMAT, f"--device={MICROPHONE}", "--latency-msec=10"]
    with subprocess.Popen(
        command,
        env=server.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it says that nobody takes its samples any more
    ) as child:
        yield child.stdout
        child.kill()


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    with sound_server("pipewire", tmp_path_factory.mktemp("sound") / "vm") as server:
        yield server


@pytest.mark.parametrize("kind", each_kind)
def test_a_tone_of_another_machine_is_heard_while_it_is_recorded(
    program: Path, vm: OwnServer, kind: str, tmp_path: Path
) -> None:
    with (
        sound_server(kind, tmp_path / "laptop", microphone=True) as laptop,
        microphone_of(laptop) as samples,
        target(program, vm, feed=samples) as borrowed,
    ):
        assert vm.sources() == [NODE]
        vm.wait_until(lambda: vm.default_source() == NODE, "it is the default, as the only one")
        described = next(each for each in vm.listed("sources") if each["name"] == NODE)
        assert described["description"] == "Microphone of laptop"
        assert borrowed.is_quiet(), "nobody records"
        with Recorder(vm, NODE) as recorder:
            borrowed.says("recorded")
            with playing(laptop, tmp_path):
                recorder.until("the tone is heard", has_tone)
            recorder.until("the tone is over", is_silent)
        borrowed.says("not recorded")
        assert vm.recording(NODE) == []


def test_without_samples_programs_hear_silence_and_do_not_hang(
    program: Path, vm: OwnServer
) -> None:
    with target(program, vm) as borrowed, Recorder(vm, NODE) as recorder:
        borrowed.says("recorded")
        assert is_silent(recorder.hear(0.5))
        with feeding(borrowed):
            recorder.until("what comes is heard", has_tone)
        recorder.until("a source that stalls is silent", is_silent)
        assert is_silent(recorder.hear(0.5))


def test_what_was_said_before_a_recording_is_never_heard(program: Path, vm: OwnServer) -> None:
    with target(program, vm) as borrowed:
        assert borrowed.child.stdin is not None
        borrowed.child.stdin.write(tone(0.2))  # that nobody asked for
        assert is_silent(record(vm, 0.5, NODE))
        borrowed.says("recorded", "not recorded")
        with Recorder(vm, NODE) as recorder:
            borrowed.says("recorded")
            with feeding(borrowed):
                recorder.until("the tone is heard", has_tone)
                recorder.__exit__(None)
                borrowed.says("not recorded")
        assert is_silent(record(vm, 0.5, NODE))


def test_two_programs_record_at_once_and_the_last_one_ends_it(program: Path, vm: OwnServer) -> None:
    with target(program, vm) as borrowed:
        with Recorder(vm, NODE):
            borrowed.says("recorded")
            assert len(record(vm, 0.2, NODE)) == 2 * 9600
            assert borrowed.is_quiet()
        borrowed.says("not recorded")


def test_it_is_gone_at_once_from_a_program_that_records(program: Path, vm: OwnServer) -> None:
    with target(program, vm) as borrowed, Recorder(vm, NODE):
        borrowed.says("recorded")
        began = time.monotonic()
        borrowed.end()
        vm.wait_until(lambda: NODE not in vm.sources(), "the source is gone")
        assert time.monotonic() - began < PATIENCE


def test_the_microphone_that_the_user_chose_stays_the_default(
    program: Path, tmp_path: Path
) -> None:
    with sound_server("pipewire", tmp_path / "vm", microphone=True) as vm:
        vm.wait_until(lambda: vm.sources() == [MICROPHONE], "the machine has its own")
        vm.pactl("set-default-source", MICROPHONE)
        with target(program, vm):
            assert vm.default_source() == MICROPHONE
        assert vm.default_source() == MICROPHONE


def test_programs_of_pipewire_record_it_too(program: Path, vm: OwnServer, tmp_path: Path) -> None:
    if shutil.which("pw-record") is None:
        pytest.skip("not installed: pipewire-bin")
    recording = tmp_path / "heard.wav"
    with target(program, vm) as borrowed:
        command = ["pw-record", "--target", NODE, "--rate", "48000", "--channels", "1"]
        with subprocess.Popen(
            [*command, "--format", "s16", recording], env=vm.environment()
        ) as child:
            borrowed.says("recorded")
            with feeding(borrowed):
                vm.wait_until(
                    lambda: recording.exists() and len(recording.read_bytes()) > 2 * 48000,
                    "a second is recorded",
                )
            child.send_signal(signal.SIGINT)
            child.wait(PATIENCE)
        borrowed.says("not recorded")
    assert max(blocks(recording.read_bytes()[44:])) > 0.15


def test_a_server_that_comes_back_has_the_source_again(program: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as before:
        vm = before.enter_context(sound_server("pipewire", tmp_path / "vm"))
        child = Target(program, vm, NODE, None)
        try:
            child.says("ready")
            vm.wait_until(lambda: NODE in vm.sources(), "the source is listed")
            with Recorder(vm, NODE):
                child.says("recorded")
                before.close()  # the server ends
                child.says("not recorded")
            with sound_server("pipewire", tmp_path / "vm") as again:
                again.wait_until(lambda: NODE in again.sources(), "the source is there again")
                with Recorder(again, NODE) as recorder:
                    child.says("recorded")
                    with feeding(child):
                        recorder.until("the tone is heard", has_tone)
                child.says("not recorded")
                child.end()
                again.wait_until(lambda: NODE not in again.sources(), "the source is gone")
        finally:
            child.child.kill()
            child.child.communicate()


def test_without_a_server_it_waits_for_one(program: Path, tmp_path: Path) -> None:
    with sound_server("pipewire", tmp_path / "vm") as vm:
        reached = vm
    child = Target(program, reached, NODE, None)
    try:
        assert child.is_quiet()
        with sound_server("pipewire", tmp_path / "vm") as vm:
            child.says("ready")
            vm.wait_until(lambda: NODE in vm.sources(), "the source is listed")
            child.end()
    finally:
        child.child.kill()
        child.child.communicate()


def test_a_session_that_takes_the_source_away_is_told(program: Path, vm: OwnServer) -> None:
    if shutil.which("pw-cli") is None:
        pytest.skip("not installed: pipewire-bin")
    child = Target(program, vm, NODE, None)
    try:
        child.says("ready")
        vm.wait_until(lambda: NODE in vm.sources(), "the source is listed")
        node = next(each for each in vm.listed("sources") if each["name"] == NODE)
        number = node["properties"].get("object.id", node["index"])
        assert vm.run("pw-cli", "destroy", str(number)).returncode == 0
        child.says("failed: the session's PipeWire took its source away")
        child.end()
    finally:
        child.child.kill()
        child.child.communicate()
