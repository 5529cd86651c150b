"""Sound in local mode: what pedos.toml says, what is missing, and which programs run when."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_dom0.local import bringup, config, sound_programs, templates
from pedos_dom0.local.bringup import CannotComeUp, LocalPrograms, check_tools, client_environment
from pedos_dom0.local.cli import main
from pedos_dom0.local.config import Config, ConfigError, Sound, VmConfig
from pedos_dom0.local.layout import Layout, sweep
from pedos_dom0.local.machine import Machine
from pedos_dom0.local.sound_server import KINDS, PIPEWIRE, PULSEAUDIO, SESSION

from .conftest import PATIENCE, PREAMBLE, FakePrograms, gone

PATH = Path("lab/pedos.toml")
SOUNDS = Config(
    vms=(
        VmConfig("sys-usb", sound=Sound(PIPEWIRE, microphone=True)),
        VmConfig("work", sound=Sound(PULSEAUDIO)),
        VmConfig("vault"),
    ),
    dom0_sound=Sound(SESSION),
)


# pedos.toml


def test_the_keys_of_sound_are_those_of_vms_and_of_dom0() -> None:
    read = config.parse(
        '[dom0]\nsound = "session"\n'
        '[vm.sys-usb]\nsound = "pipewire"\nmicrophone = true\n'
        '[vm.work]\nsound = "pulseaudio"\n[vm.vault]\n',
        PATH,
    )
    assert read.sounds == SOUNDS.sounds
    assert read.vms == SOUNDS.vms
    assert config.parse("[vm.work]\n", PATH).sounds == {}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('[vm.a]\nsound = "alsa"\n', 2, 'vm.a.sound: must be one of "pipewire", "pulseaudio"'),
        ("[vm.a]\nsound = true\n", 2, "not the value true"),
        ('[dom0]\nsound = "jack"\n[vm.a]\n', 2, "dom0.sound: must be one of"),
        ("[vm.a]\nmicrophone = true\n", 2, "vm.a.microphone: is part of a sound server of its own"),
        ('[dom0]\nsound = "session"\nmicrophone = true\n[vm.a]\n', 3, "dom0.microphone: is part"),
        ('[vm.a]\nsound = "pipewire"\nmicrophone = "yes"\n', 3, "must be true or false"),
    ],
)
def test_a_mistake_in_them_has_its_line_and_a_correction(text: str, place: int, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{PATH}:{place}: ")) as told:
        config.parse(text, PATH)
    assert words in str(told.value)


# init


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("session", [True, False])
def test_init_sets_up_a_pair_that_can_be_heard(kind: str, session: bool) -> None:
    text = templates.with_sound(kind, session=session)
    wanted = {"sys-usb": Sound(kind, microphone=True), "work": Sound(kind)}
    if session:
        wanted["dom0"] = Sound(SESSION)
    assert config.parse(text, PATH).sounds == wanted
    assert config.parse(templates.CONFIG, PATH).sounds == {}


def test_init_says_how_to_hear_it_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sound_programs, "has_session", lambda: False)
    monkeypatch.setattr(sound_programs, "find_pedos_sound", lambda: None)
    assert main(["init", "--sound", str(tmp_path / "lab")]) == 0
    said = capsys.readouterr()
    assert "qvm-device mic attach work sys-usb:mic" in said.out
    assert "--vm work -- parec -d pedos_mic.sys-usb | pacat" in said.out
    assert "pedos-sound" in said.err
    assert set(config.load(tmp_path / "lab" / "pedos.toml").sounds) == {"sys-usb", "work"}


def test_on_a_desktop_init_takes_its_microphone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pulse").mkdir()
    (tmp_path / "pulse" / "native").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["init", "--sound", str(tmp_path / "lab")]) == 0
    assert config.load(tmp_path / "lab" / "pedos.toml").sounds["dom0"] == Sound(SESSION)
    assert "mic attach work dom0:mic" in capsys.readouterr().out


# What is missing


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        sound_programs.shutil, "which", lambda tool, **_: real(tool) or f"/usr/bin/{tool}"
    )
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")


def test_what_is_not_installed_is_named_with_its_packages(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr(sound_programs.shutil, "which", lambda _tool, **_: None)
    monkeypatch.setattr(sound_programs.sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(bringup, "TOOLS", {})
    monkeypatch.setattr(bringup, "_fuse_problem", lambda: None)
    with pytest.raises(CannotComeUp) as told:
        check_tools(layout, SOUNDS)
    said = str(told.value)
    for tool in ("wireplumber", "pulseaudio", "pedos-sound"):
        assert tool in said
    assert "the sound of dom0, sys-usb, work needs" in said
    assert "--no-install-recommends dbus-daemon pedos-sound pipewire pipewire-pulse" in said
    assert str(layout.config) in said
    check_tools(layout, Config(vms=(VmConfig("work"),)))  # without sound, nothing of it is needed


def test_a_checkout_without_the_program_says_how_to_build_it(
    layout: Layout, all_installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sound_programs, "find_pedos_sound", lambda: None)
    monkeypatch.setattr(sound_programs.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "pedos-sound").symlink_to("nowhere")
    (problem,) = sound_programs.problems(layout, {"dom0": Sound(SESSION)})
    assert problem == "pedos-sound is not built in this checkout\n  try:  make sound"


def test_a_session_without_its_folder_is_told(
    all_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(Path("/tmp/lab"))
    assert sound_programs.problems(layout, SOUNDS.sounds) == []
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    (problem,) = sound_programs.problems(layout, SOUNDS.sounds)
    assert problem.startswith('dom0 has sound = "session", but this user has no session here')


def test_a_folder_whose_path_is_too_long_for_sockets_is_told(all_installed: None) -> None:
    deep = Layout(Path("/tmp") / ("x" * 80))
    (problem,) = sound_programs.problems(deep, {"work": Sound(PULSEAUDIO)})
    assert "too long for the sockets of a sound server" in problem
    assert sound_programs.problems(deep, {"dom0": Sound(SESSION)}) == []


# Command lines


def test_the_programs_of_a_vm_meet_at_its_own_server(layout: Layout) -> None:
    programs = LocalPrograms(layout, SOUNDS)
    server, speaker = programs.sound("sys-usb")
    folder = layout.run / "sound" / "sys-usb"
    assert list(server.argv)[-3:] == ["--microphone", "pipewire", str(folder)]
    socket = str(layout.sound_socket("sys-usb"))
    assert list(speaker.argv)[1:] == ["--socket", socket]
    assert speaker.env["XDG_RUNTIME_DIR"] == str(folder / "rt")
    assert speaker.env["PULSE_SERVER"] == f"unix:{folder}/rt/pulse/native"
    agent = list(programs.agent("sys-usb", 1).argv)
    assert agent[agent.index("--sound-socket") + 1] == socket
    # In the session of the user nothing is changed, and no server is started.
    (speaker,) = programs.sound("dom0")
    assert dict(speaker.env) == {}
    assert "--sound-socket" in programs.dom0_agent().argv
    assert programs.sound("vault") == ()
    assert "--sound-socket" not in programs.agent("vault", 3).argv


def test_a_command_in_a_vm_hears_that_vm(layout: Layout) -> None:
    assert client_environment(layout, SOUNDS, "work")["PULSE_SERVER"] == (
        f"unix:{layout.run}/sound/work/rt/pulse/native"
    )
    for name in ("dom0", "vault"):
        own = client_environment(layout, SOUNDS, name)
        assert own.get("PULSE_SERVER") == os.environ.get("PULSE_SERVER")


# The machine


@asynccontextmanager
async def machine_up(layout: Layout, programs: FakePrograms) -> AsyncIterator[Machine]:
    machine = Machine(layout, [("sys-usb", True), ("work", False)], programs)
    listener = await machine.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.run, listener)
        try:
            with trio.fail_after(PATIENCE):
                yield machine
        finally:
            with trio.CancelScope(shield=True):
                await machine.stop()


async def test_the_sound_of_a_vm_lives_as_long_as_the_vm(
    layout: Layout, programs: FakePrograms
) -> None:
    programs.sounds = {"sys-usb": ["server", "speaker"], "dom0": ["dom0-speaker"]}
    async with machine_up(layout, programs) as machine:
        (of_dom0,) = machine.dom0_sound
        assert of_dom0.pid is not None
        vm = machine.domains["sys-usb"]
        assert vm.sound == []
        await machine.start(vm)
        pids = [each.pid for each in vm.sound]
        assert len(pids) == 2 and None not in pids
        await machine.shutdown(vm, force=False)
        assert [each.pid for each in vm.sound] == [None, None]
        for pid in pids:
            assert pid is not None
            await gone(pid)
        assert of_dom0.pid is not None, "dom0's own is not the VM's"
        last = of_dom0.pid
    await gone(last)


async def test_a_sound_program_that_dies_is_started_again_and_ends_no_vm(
    layout: Layout, programs: FakePrograms
) -> None:
    programs.sounds = {"sys-usb": ["server"]}
    async with machine_up(layout, programs) as machine:
        vm = machine.domains["sys-usb"]
        await machine.start(vm)
        (server,) = vm.sound
        await server.ready.wait()
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await gone(first)
        while server.pid in (None, first):  # noqa: ASYNC110 - there is no event of a restart
            await trio.sleep(0.01)
        assert vm.state == "Running"
        assert server.starts == 2


async def test_sound_that_does_not_start_leaves_the_vm_running(
    layout: Layout, programs: FakePrograms, caplog: pytest.LogCaptureFixture
) -> None:
    programs.sounds = {"sys-usb": ["server"]}
    programs.bodies["server"] = "sys.exit(1)"
    async with machine_up(layout, programs) as machine:
        vm = machine.domains["sys-usb"]
        await machine.start(vm)
        (server,) = vm.sound
        await server.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert vm.state == "Running"
    assert "sys-usb is without sound: server does not start" in caplog.text


async def test_what_speaks_to_a_server_ends_before_it(
    layout: Layout, programs: FakePrograms
) -> None:
    tells = (
        "def end(*_):\n"
        f"    open({str(layout.root / 'order')!r}, 'a').write(NAME)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nready()\nwhile True: signal.pause()"
    )
    assert "import os, signal, socket, sys" in PREAMBLE
    programs.sounds = {"sys-usb": ["server", "speaker"]}
    for name in ("server", "speaker"):
        programs.bodies[name] = f"NAME = {name + ' '!r}\n{tells}"
    async with machine_up(layout, programs) as machine:
        vm = machine.domains["sys-usb"]
        await machine.start(vm)
        for each in vm.sound:
            await each.ready.wait()
    assert (layout.root / "order").read_text() == "speaker server "


def test_what_killed_servers_left_is_removed(layout: Layout) -> None:
    left = layout.sound("work") / "rt"
    left.mkdir(parents=True)
    (left / "file").touch()
    assert any("which sound servers left" in line for line in sweep(layout))
    assert not layout.sound("work").exists()
