"""pedos-sound offers programs the microphone of another VM: what they find, and what they hear."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pedos_dom0.local.sound_server import PULSEAUDIO
from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link

from .hearing import Recorder, has_tone, is_silent, tone
from .house import stopped
from .program import Agent, Channel, Program, processor_seconds, running
from .servers import OwnServer, each_kind, sound_server

NODE = "pedos_mic.work"
STEP = 480  # samples: ten milliseconds


class System(NamedTuple):
    server: OwnServer
    agent: Agent
    program: Program

    def await_source(self, name: str = NODE, *, is_there: bool = True) -> None:
        self.server.wait_until(
            lambda: (name in self.server.sources()) == is_there, f"{name}: {is_there}"
        )

    def description(self, name: str = NODE) -> str:
        (found,) = [
            each["description"] for each in self.server.listed("sources") if each["name"] == name
        ]
        return str(found)


@pytest.fixture(scope="module", params=each_kind)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnServer]:
    folder = tmp_path_factory.mktemp("sound")
    with sound_server(request.param, folder / "vm") as started:
        yield started


@pytest.fixture
def system(server: OwnServer, tmp_path: Path) -> Iterator[System]:
    agent = Agent(tmp_path / "sound.sock")
    with contextlib.closing(agent), running(server, agent.path) as program:
        agent.accept()
        agent.await_server()
        yield System(server, agent, program)


@contextlib.contextmanager
def speaking(channel: Channel, samples: bytes, counter: int = 0) -> Iterator[None]:
    """Sends these over and over, in real time, as a source that records."""
    ended = threading.Event()

    def speak() -> None:
        nonlocal counter
        at = 0
        due = time.monotonic()
        while not ended.is_set():
            part = samples[at : at + 2 * STEP]
            at = (at + 2 * STEP) % len(samples)
            frame = frames.build(frames.Frame(frames.AUDIO, counter, part))
            with contextlib.suppress(BlockingIOError):
                channel.socket.send(frame, 0x40)  # MSG_DONTWAIT
            counter = (counter + STEP) % 2**32
            due += STEP / frames.RATE
            ended.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_programs_find_it_hear_it_and_lose_it(system: System) -> None:
    before = system.server.default_source()
    id_, channel = system.agent.borrow()
    system.await_source()
    assert system.description() == "Microphone of work"
    system.server.wait_until(
        lambda: system.server.default_source() == NODE, "it is the default as the only one"
    )
    with Recorder(system.server, NODE) as recorder:
        channel.await_frame(frames.START)
        with speaking(channel, tone(1.0)):
            recorder.until("the tone", has_tone)
        system.agent.await_listening(id_, True)
        # The source says nothing any more: a program that records gets silence and does not hang.
        recorder.until("silence", is_silent)
    channel.await_frame(frames.STOP)
    system.agent.await_listening(id_, False)
    system.agent.send(link.Close(id_))
    assert system.agent.await_ended(id_) == ""
    system.await_source(is_there=False)
    system.server.wait_until(
        lambda: system.server.default_source() == before, "the default is what it was"
    )


@pytest.mark.parametrize("server", ["pipewire"], indirect=True)
def test_it_is_not_ready_before_programs_find_it(system: System) -> None:
    with stopped(system.server.programs()["pipewire-pulse"]):
        id_, _ = system.agent.borrow(is_ready=False)
        # PipeWire itself has it already.
        system.server.wait_until(
            lambda: NODE in system.server.run("pw-cli", "list-objects", "Node").stdout, "the node"
        )
        assert system.agent.is_connected()
        assert link.Ready(id_) not in system.agent.said
    system.agent.await_message(link.Ready, lambda said: said.id == id_)


def test_it_is_never_listed_as_a_microphone_of_this_session(system: System) -> None:
    system.agent.borrow()
    system.await_source()
    system.agent.said.clear()
    system.agent.borrow("mail")
    system.await_source("pedos_mic.mail")
    listed = [said for said in system.agent.said if isinstance(said, link.Devices)]
    assert all(said.devices == () for said in listed)


def test_each_device_of_each_vm_has_its_own_name(system: System) -> None:
    system.agent.borrow("mail")
    system.agent.borrow("mail", "usb.1", 'Head\'set "x" \\ {y}')
    system.await_source("pedos_mic.mail")
    system.await_source("pedos_mic.mail.usb.1")
    shown = system.description("pedos_mic.mail.usb.1")
    assert shown.startswith("Head") and shown.endswith("(mail)")


def test_what_is_said_while_nobody_records_is_not_heard_later(system: System) -> None:
    _, channel = system.agent.borrow()
    loud = tone(0.02)
    for counter in range(20):
        channel.say(frames.Frame(frames.AUDIO, counter, loud))
    with Recorder(system.server, NODE) as recorder:
        channel.await_frame(frames.START)
        assert is_silent(recorder.hear(0.3))


def test_what_is_of_the_recording_before_is_not_heard_in_the_next_one(system: System) -> None:
    _, channel = system.agent.borrow()
    with Recorder(system.server, NODE) as recorder:
        channel.await_frame(frames.START)
        with speaking(channel, tone(1.0), 4_000_000):
            assert is_silent(recorder.hear(0.5))
        with speaking(channel, tone(1.0)):
            recorder.until("the tone", has_tone)
        # A counter that jumps later is no matter: the source has lost samples.
        with speaking(channel, tone(1.0), 8_000_000):
            recorder.until("the tone", has_tone)


def test_a_source_that_sends_too_fast_has_to_wait(system: System) -> None:
    id_, channel = system.agent.borrow()
    channel.socket.setblocking(False)
    flood = frames.build(frames.Frame(frames.AUDIO, 0, bytes(2))) * 100
    before, began, sent = processor_seconds(system.program.pid), time.monotonic(), 0
    while time.monotonic() - began < 1.0:
        try:
            sent += channel.socket.send(flood)
        except BlockingIOError:
            time.sleep(0.001)
    # A frame counts as a millisecond: one second at once, and two seconds a second.
    assert sent / 10 < 4500
    assert processor_seconds(system.program.pid) - before < 0.7
    assert not [said for said in system.agent.said if isinstance(said, link.Ended)]
    system.agent.send(link.Close(id_))
    system.agent.await_ended(id_)


@pytest.mark.parametrize(
    "raw", [b"\x03\x00\x00\x00\x00\x00\x00\x00", b"\x01\x00\x03\x00\x00\x00\x00\x00", b"\xff" * 9]
)
def test_a_malformed_frame_ends_it(system: System, raw: bytes) -> None:
    id_, channel = system.agent.borrow()
    channel.socket.sendall(raw)
    assert system.agent.await_ended(id_) == "the other VM sent a malformed frame"
    system.await_source(is_there=False)


def test_a_killed_one_leaves_nothing_once_the_next_one_is_there(system: System) -> None:
    system.agent.borrow()
    system.await_source()
    system.program.kill()
    system.agent.await_end()
    with running(system.server, system.agent.path):
        system.agent.accept()
        system.agent.await_server()
        system.await_source(is_there=False)
        system.agent.borrow()
        system.await_source()
    system.await_source(is_there=False)
    left = [name for name in os.listdir(system.server.described.folder) if "pedos-sound." in name]
    assert left == []


def pipe_module(server: OwnServer) -> str:
    """The number of the module that is the borrowed source in PulseAudio."""
    for line in server.pactl("list", "short", "modules").splitlines():
        number, name, *arguments = line.split("\t")
        if name == "module-pipe-source" and f"source_name={NODE} " in arguments[0]:
            return number
    raise AssertionError(f"no module is {NODE}")


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_source_that_its_server_takes_away_is_closed_and_offered_again(
    system: System, is_recorded: bool
) -> None:
    if system.server.kind != PULSEAUDIO:
        pytest.skip("only PulseAudio has a module for it that somebody can unload")
    id_, channel = system.agent.borrow()
    system.await_source()
    module = pipe_module(system.server)
    if is_recorded:
        with Recorder(system.server, NODE):
            channel.await_frame(frames.START)
            system.agent.await_listening(id_, True)
            system.server.pactl("unload-module", module)
            channel.await_frame(frames.STOP)
        system.agent.await_listening(id_, False)
    else:
        system.server.pactl("unload-module", module)
    system.await_source()
    assert pipe_module(system.server) != module
    with Recorder(system.server, NODE) as recorder:
        channel.await_frame(frames.START)
        with speaking(channel, tone(1.0)):
            recorder.until("the tone", has_tone)
    assert not [said for said in system.agent.said if isinstance(said, link.Ended)]


def test_all_of_it_ends_with_the_agent(system: System) -> None:
    system.agent.borrow()
    system.agent.borrow("mail")
    system.await_source("pedos_mic.mail")
    system.agent.hang_up()
    system.await_source("pedos_mic.mail", is_there=False)
    system.await_source(is_there=False)
    system.agent.accept()
    system.agent.await_server()


@pytest.mark.parametrize("kind", each_kind)
def test_a_server_that_restarts_has_it_again(kind: str, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "sound.sock")
    with contextlib.ExitStack() as later:
        with sound_server(kind, tmp_path / "restarted") as server:
            program = later.enter_context(running(server, agent.path))
            agent.accept()
            agent.await_server()
            id_, channel = agent.borrow()
            with Recorder(server, NODE):
                channel.await_frame(frames.START)
        channel.await_frame(frames.STOP)
        with sound_server(kind, tmp_path / "restarted") as again:
            system = System(again, agent, program)
            agent.await_server()
            system.await_source()
            with Recorder(again, NODE):
                channel.await_frame(frames.START)
            assert not [said for said in agent.said if isinstance(said, link.Ended)]
            agent.send(link.Close(id_))
            agent.await_ended(id_)
            system.await_source(is_there=False)
            later.close()
    agent.close()
