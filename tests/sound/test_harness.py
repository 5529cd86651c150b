"""What the tests of sound rely on: the ear, and servers that are there when they say so."""

from __future__ import annotations

import array
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pedos_dom0.local import sound_session
from pedos_dom0.local.sound_server import MICROPHONE, MICROPHONE_INPUT, PULSEAUDIO, SoundServer

from tests.e2e.system import process_table
from tests.patience import PATIENCE
from tests.sound import hearing
from tests.sound.hearing import Recorder, playing, record
from tests.sound.servers import Server, each_kind, sound_server


def test_the_ear_hears_the_tone_and_no_other() -> None:
    there = hearing.tone(0.5)
    assert hearing.has_tone(there)
    assert min(hearing.blocks(there)) == pytest.approx(hearing.LEVEL, rel=0.01)
    assert not hearing.is_silent(there)
    other = hearing.tone(0.5, 750)
    assert not hearing.has_tone(other)
    assert hearing.is_silent(other), "another tone is not this one"
    assert hearing.has_tone(other, 750)


def test_the_ear_takes_neither_nothing_nor_half_a_tone_for_it() -> None:
    assert not hearing.has_tone(b"")
    assert not hearing.is_silent(b""), "what was not recorded was not silent"
    half = hearing.tone(0.5) + bytes(len(hearing.tone(0.5)))
    assert not hearing.has_tone(half)
    assert not hearing.is_silent(half)
    assert hearing.is_silent(bytes(96000))


def test_the_ear_hears_a_tone_whose_rate_is_adapted() -> None:
    # 0.5 % is the most that the target's rate is changed by: over a second, the phase turns five
    # times, and a single window would hear next to nothing.
    slow = hearing.tone(1, 995)
    assert hearing.has_tone(slow)
    whole = hearing.loudness(array.array("h", slow))
    assert whole < hearing.SILENT


@pytest.mark.parametrize("kind", each_kind)
def test_what_is_played_into_the_microphone_is_heard(kind: str, tmp_path: Path) -> None:
    with sound_server(kind, tmp_path / "vm", microphone=True) as server:
        assert server.sources() == [MICROPHONE]
        assert server.default_source() == MICROPHONE
        assert server.recording(MICROPHONE) == []
        assert hearing.is_silent(record(server, 0.3))
        with playing(server, tmp_path), Recorder(server) as recorder:
            recorder.until("the tone is heard", hearing.has_tone)
            (stream,) = server.recording(MICROPHONE)
            assert stream["pid"] == recorder.pid
        server.wait_until(lambda: not server.recording(MICROPHONE), "the recorder's stream is gone")
        server.wait_until(lambda: not server.playing(), "the player's stream is gone")


@pytest.mark.parametrize("kind", each_kind)
def test_servers_know_nothing_of_each_other_and_of_hardware(kind: str, tmp_path: Path) -> None:
    with (
        sound_server(kind, tmp_path / "one", microphone=True) as one,
        sound_server(kind, tmp_path / "two") as two,
    ):
        assert one.sources() == [MICROPHONE]
        assert two.sources() == []
        assert two.listed("cards") == []
        with playing(one, tmp_path):
            assert two.playing() == []


@pytest.mark.parametrize("kind", each_kind)
def test_nothing_of_a_server_stays(kind: str, tmp_path: Path) -> None:
    with sound_server(kind, tmp_path / "vm", microphone=True) as server:
        programs = server.programs()
        assert kind in programs
    table = process_table()
    assert [pid for pid in programs.values() if pid in table] == []


@pytest.mark.parametrize("kind", each_kind)
def test_a_server_ends_whole_when_one_of_its_programs_is_killed(kind: str, tmp_path: Path) -> None:
    with sound_server(kind, tmp_path / "vm") as server:
        programs = server.programs()
        os.kill(programs[kind], signal.SIGKILL)
        assert server.child.wait(PATIENCE) == 1
    # What depends on the killed one ends as well, and may be seen first.
    assert re.search(r"error: [a-z-]+ (was killed|exited)", (tmp_path / "vm.log").read_text())
    table = process_table()
    assert [pid for pid in programs.values() if pid in table] == []


@pytest.mark.parametrize("kind", each_kind)
def test_a_server_starts_in_what_a_killed_one_has_left(kind: str, tmp_path: Path) -> None:
    with sound_server(kind, tmp_path / "vm") as server:
        server.child.kill()
        server.child.wait(PATIENCE)
    with sound_server(kind, tmp_path / "vm", microphone=True) as server:
        assert server.sources() == [MICROPHONE]


# Refuses as libpulse does, the first two times.
REFUSES_TWICE = """#!/bin/sh
echo >>"$0.times"
[ "$(wc -l <"$0.times")" -gt 2 ] && echo yes && exit
echo "Connection failure: {refused}" >&2; exit 1
"""


def refuses_twice(folder: Path) -> Path:
    program = folder / "pactl"
    program.write_text(REFUSES_TWICE.format(refused=sound_session.REFUSED))
    program.chmod(0o700)
    return program


async def test_a_server_that_is_only_busy_is_asked_again_while_it_starts(tmp_path: Path) -> None:
    server, program = SoundServer(PULSEAUDIO, tmp_path), str(refuses_twice(tmp_path))
    assert await sound_session._ask(server, [program]) == b""
    assert await sound_session._ask(server, [program], check=True) == b"yes\n"
    with pytest.raises(sound_session.Refused, match="no such file"):
        await sound_session._ask(server, ["ls", "no such file"], check=True)


def test_a_server_that_is_only_busy_is_asked_again_and_a_dead_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses_twice(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "native"
    server = Server(PULSEAUDIO, {"PULSE_SERVER": f"unix:{path}"})
    with pytest.raises(AssertionError, match="no sound server at"):
        server.pactl("info")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert server.pactl("info") == "yes\n"
    with pytest.raises(AssertionError, match="no sound server at"):
        server.has_room()


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    assert SoundServer(PULSEAUDIO, Path("/run/x")).too_long() is None
    module = "pedos_dom0.local.sound_session"
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, PULSEAUDIO, folder],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "too long for the sockets of a sound server" in done.stderr


def test_what_is_played_into_the_microphone_is_no_microphone_itself() -> None:
    # A monitor of a sink is never lent; so the microphone must not be one.
    assert not MICROPHONE.endswith(".monitor")
    assert MICROPHONE != MICROPHONE_INPUT
