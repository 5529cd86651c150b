"""Every part is killed or stands still while a VM listens; then it is heard again, or it is gone
and said so, and nothing is left open at the source."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_dom0.local.sound_server import MICROPHONE

from tests.sound.hearing import Recorder, has_tone, is_silent, playing
from tests.sound.house import House, ear, lender, stopped
from tests.sound.servers import Server, each_kind


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Listening:
    """A VM that hears another one's microphone."""

    def __init__(self, house: House, source: str, target: str, folder: Path) -> None:
        self.house, self.source, self.target, self.folder = house, source, target, folder
        self.speaks, self.hears = house.server(source), house.server(target)
        self.microphone = f"pedos_mic.{source}"

    def heard(self) -> None:
        """Plays, records and hears it: all anew."""
        with (
            playing(self.speaks, self.folder),
            Recorder(self.hears, self.microphone) as recorder,
        ):
            recorder.until("the tone is heard", has_tone)

    def is_there(self) -> bool:
        return self.microphone in sources(self.hears)

    def lent(self) -> bool:
        return self.target in self.house.holders(f"{self.source}:mic")

    def lend_again(self) -> None:
        """After something has ended the attachment, an attach brings it back."""
        house = self.house
        house.wait_until(lambda: not self.lent(), "it is lent no more")
        house.wait_until(lambda: not self.is_there(), "its device is gone in the target")
        house.wait_until(
            lambda: not self.speaks.recording(MICROPHONE), "nothing is open at the source"
        )
        ends = {self.source, self.target}
        house.wait_until(lambda: ends <= house.agents(), "both agents are there")
        house.wait_until(lambda: house.is_offered(self.source), "it can be lent again")
        house.lend(self.source, self.target)
        house.wait_until(self.is_there, "the microphone is there again")


def sources(server: Server) -> list[str]:
    """None while the server is away."""
    done = server.run("pactl", "list", "short", "sources")
    return [line.split("\t")[1] for line in done.stdout.splitlines() if "\t" in line]


@pytest.fixture(params=each_kind)
def source(request: pytest.FixtureRequest) -> str:
    return lender(request.param)


@pytest.fixture(params=each_kind)
def target(request: pytest.FixtureRequest) -> str:
    return ear(request.param)


@pytest.fixture
def listening(house: House, tmp_path: Path) -> Iterator[Listening]:
    """PipeWire lends, PulseAudio listens."""
    house.lend("pw", "pa-ear")
    yield Listening(house, "pw", "pa-ear", tmp_path)


def lent(house: House, source: str, target: str, folder: Path) -> Listening:
    house.lend(source, target)
    made = Listening(house, source, target, folder)
    made.heard()
    return made


def test_pedos_sound_of_the_source_is_killed(house: House, source: str, tmp_path: Path) -> None:
    listening = lent(house, source, "pw-ear", tmp_path)
    with Recorder(listening.hears, listening.microphone):
        kill(house.speaker(source))
        listening.lend_again()
    listening.heard()


def test_pedos_sound_of_the_target_is_killed(house: House, target: str, tmp_path: Path) -> None:
    listening = lent(house, "pw", target, tmp_path)
    with Recorder(listening.hears, listening.microphone):
        kill(house.speaker(target))
        listening.lend_again()
    listening.heard()


def test_the_server_of_the_source_is_killed(house: House, source: str, tmp_path: Path) -> None:
    listening = lent(house, source, "pw-ear", tmp_path)
    kill(house.main_program(source))
    house.server_answers(source)
    # It was away for a moment only: what is lent stays.
    assert listening.lent()
    listening.heard()


def test_the_server_of_the_target_is_killed(house: House, target: str, tmp_path: Path) -> None:
    listening = lent(house, "pw", target, tmp_path)
    kill(house.main_program(target))
    house.server_answers(target)
    house.wait_until(listening.is_there, "the microphone is there again")
    assert listening.lent()
    listening.heard()


@pytest.mark.parametrize("end", ["source", "target"])
def test_an_agent_is_killed(listening: Listening, end: str) -> None:
    house = listening.house
    listening.heard()
    vm = getattr(listening, end)
    (agent,) = house.victim(f"agent:{vm}")
    with Recorder(listening.hears, listening.microphone):
        kill(agent)
        house.wait_until(lambda: house.victim(f"agent:{vm}") not in ([agent], []), "another runs")
        listening.lend_again()
    listening.heard()


def test_dom0s_service_is_killed_and_nobody_hears_of_it(listening: Listening) -> None:
    house = listening.house
    with (
        playing(listening.speaks, listening.folder),
        Recorder(listening.hears, listening.microphone) as recorder,
    ):
        recorder.until("the tone is heard", has_tone)
        (service,) = house.victim("dom0")
        kill(service)
        recorder.until("it is heard without the service", has_tone)
        house.wait_until(lambda: {"pw", "pa-ear"} <= house.agents(), "the agents are back")
        assert listening.lent()
        recorder.until("and with it", has_tone)
        house.take_back("pw", "pa-ear")
        house.wait_until(lambda: not listening.is_there(), "it can be taken back")
    listening.speaks.wait_until(
        lambda: not listening.speaks.recording(MICROPHONE), "the source's stream ends"
    )


def test_the_source_is_shut_down(listening: Listening) -> None:
    house = listening.house
    listening.heard()
    house.ok("qvm-shutdown", "pw")
    house.wait_until(lambda: not listening.is_there(), "its device is gone in the target")
    house.ok("qvm-start", "pw")
    house.wait_for_sound()


def test_a_source_that_stands_still_sounds_silent_and_programs_go_on(
    house: House, target: str, tmp_path: Path
) -> None:
    listening = lent(house, "pw", target, tmp_path)
    with (
        playing(listening.speaks, tmp_path),
        Recorder(listening.hears, listening.microphone) as recorder,
    ):
        recorder.until("the tone is heard", has_tone)
        with stopped(house.speaker("pw")):
            recorder.until("silence comes, at the pace of time", is_silent)
            assert is_silent(recorder.hear(1))
        recorder.until("the tone is heard again", has_tone)


def test_the_microphone_is_unplugged_and_plugged_in_again(
    house: House, source: str, tmp_path: Path
) -> None:
    """A server moves streams of a device that is gone to another one, which may be the monitor of
    the loudspeakers: then the VM would hear the source's calls."""
    vm = source
    speaks = house.server(vm)
    other = ("module-null-sink", "sink_name=into_second", "rate=48000", "channels=1")
    sink = speaks.pactl("load-module", *other).strip()
    remap = (
        *("module-remap-source", "source_name=second", "master=into_second.monitor"),
        *("channels=1", "source_properties=device.description=Second"),
    )
    plugged = speaks.pactl("load-module", *remap).strip()
    name = f"{vm}:second"
    try:
        house.wait_until(lambda: name in house.devices("mic"), f"{name} is listed")
        house.ok("qvm-device", "mic", "attach", "pw-ear", name)
        hears = house.server("pw-ear")
        node = f"pedos_mic.{vm}.second"
        house.wait_until(lambda: node in sources(hears), "it is there")
        with (
            playing(speaks, tmp_path),  # into the other microphone, and so what must not be heard
            Recorder(hears, node) as recorder,
        ):
            assert is_silent(recorder.hear(0.5))
            speaks.pactl("unload-module", plugged)
            house.wait_until(lambda: node not in sources(hears), "it is gone in the target")
            assert not [
                stream
                for stream in speaks.listed("source-outputs")
                if stream["properties"].get("application.process.binary") == "pedos-sound"
            ], "nothing else is recorded in its place"
        house.wait_until(lambda: name not in house.devices("mic"), f"{name} is not listed")
        plugged = speaks.pactl("load-module", *remap).strip()
        house.wait_until(lambda: name in house.devices("mic"), f"{name} is listed again")
    finally:
        speaks.run("pactl", "unload-module", plugged)
        speaks.run("pactl", "unload-module", sink)
