"""pedos-sound lends microphones of a sound server: what the other VM hears, and when nothing is
recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link

from .hearing import has_tone, playing
from .program import Agent, Program, running
from .servers import OwnServer, each_kind, sound_server

MICROPHONE = "microphone"


class System(NamedTuple):
    server: OwnServer
    agent: Agent
    program: Program
    folder: Path

    def streams(self, source: str = MICROPHONE) -> list[str]:
        """The names of our recordings of a source."""
        recorded = self.server.recording(source)
        return [each["name"] for each in recorded if each["pid"] == self.program.pid]

    def await_streams(self, *names: str, source: str = MICROPHONE) -> None:
        self.server.wait_until(
            lambda: self.streams(source) == list(names), f"recordings of {source}: {names}"
        )


@pytest.fixture(scope="module", params=each_kind)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnServer]:
    folder = tmp_path_factory.mktemp("sound")
    with sound_server(request.param, folder / "vm", microphone=True) as started:
        yield started


@pytest.fixture
def system(server: OwnServer, tmp_path: Path) -> Iterator[System]:
    agent = Agent(tmp_path / "sound.sock")
    with running(server, agent.path) as program:
        agent.accept()
        agent.await_server()
        agent.await_device()
        yield System(server, agent, program, tmp_path)
    agent.close()


def test_a_tone_is_heard_and_nothing_is_recorded_before_and_after(system: System) -> None:
    id_, channel = system.agent.lend()
    with playing(system.server, system.folder):
        assert system.streams() == []
        channel.start()
        first = channel.await_frame(frames.AUDIO)
        assert first.counter < frames.RATE
        channel.until("the tone", has_tone)
        system.await_streams("Microphone for work")
        system.agent.await_listening(id_, True)
        stopped = time.monotonic()
        channel.stop()
        system.await_streams()
        assert time.monotonic() - stopped >= 0.4  # hysteresis
    system.agent.await_listening(id_, False)
    system.agent.send(link.Close(id_))
    assert system.agent.await_ended(id_) == ""
