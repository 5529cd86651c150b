"""pedos-sound lends microphones of a sound server: what the other VM hears, and when nothing is
recorded."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from pedos_dom0.local.sound_server import MICROPHONE, MICROPHONE_INPUT
from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link

from tests.compiled import compile_c, sanitized
from tests.patience import PATIENCE

from .hearing import has_tone, is_silent, playing
from .program import Agent, Program, running
from .servers import OwnServer, each_kind, sound_server


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
    with contextlib.closing(agent), running(server, agent.path) as program:
        agent.accept()
        agent.await_server()
        agent.await_device()
        yield System(server, agent, program, tmp_path)


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


def loaded(server: OwnServer, *words: str) -> str:
    """Loads a module; its number, to unload it."""
    return server.pactl("load-module", *words).strip()


@contextlib.contextmanager
def second_microphone(server: OwnServer, name: str = "headset") -> Iterator[str]:
    """One more, which hears what the first one hears; the value unplugs it."""
    module = loaded(
        server, "module-remap-source", f"source_name={name}", f"master={MICROPHONE_INPUT}.monitor"
    )
    try:
        yield module
    finally:
        server.run("pactl", "unload-module", module)
        server.wait_until(lambda: name not in server.sources(), f"{name} is gone")


def test_a_microphone_is_listed_beside_the_users_choice_and_no_monitor_is(system: System) -> None:
    with second_microphone(system.server):
        module = loaded(
            system.server,
            "module-remap-source",
            "source_name=pedos_mic.other",
            f"master={MICROPHONE_INPUT}.monitor",
        )
        said = system.agent.await_message(
            link.Devices, lambda said: "headset" in {each.id for each in said.devices}
        )
        system.server.pactl("unload-module", module)
        by_id = {each.id: each for each in said.devices}
        assert set(by_id) == {MICROPHONE, "headset", "mic"}
        assert by_id["mic"].identity == "default"
        assert by_id["headset"].identity == "headset"
        assert [each.is_default for each in by_id.values()].count(True) == 2
        assert by_id[MICROPHONE].is_default and by_id["mic"].is_default
        assert by_id["mic"].description == by_id[MICROPHONE].description
    said = system.agent.await_message(
        link.Devices, lambda said: "headset" not in {each.id for each in said.devices}
    )


def test_two_devices_of_one_card_are_told_apart(system: System) -> None:
    modules = []
    for number in range(2):
        card = f"device.bus_path=pci-0000:00:1f.3 device.vendor.id=8086 alsa.device={number}"
        modules.append(
            loaded(
                system.server,
                *("module-remap-source", f"source_name=card.{number}"),
                *(f"master={MICROPHONE_INPUT}.monitor", f'source_properties="{card}"'),
            )
        )
    try:
        said = system.agent.await_message(
            link.Devices, lambda said: {"card.0", "card.1"} <= {each.id for each in said.devices}
        )
        identities = {each.id: each.identity for each in said.devices}
        assert identities["card.0"] == "hw:pci-0000:00:1f.3:8086:::0"
        assert identities["card.1"] == "hw:pci-0000:00:1f.3:8086:::1"
    finally:
        for module in modules:
            system.server.pactl("unload-module", module)


def test_what_is_unplugged_ends_and_nothing_else_is_recorded_in_its_place(system: System) -> None:
    with second_microphone(system.server) as module:
        device = system.agent.await_device("headset")
        id_, channel = system.agent.lend(device="headset", identity=device.identity)
        channel.start()
        channel.await_frame(frames.AUDIO)
        system.await_streams("Microphone for work", source="headset")
        system.server.pactl("unload-module", module)
        assert system.agent.await_ended(id_) == "the microphone was unplugged"
        pids = [
            each["properties"].get("application.process.id")
            for each in system.server.listed("source-outputs")
        ]
        assert str(system.program.pid) not in pids


def test_another_device_under_the_same_name_is_not_lent(system: System) -> None:
    id_, _ = system.agent.lend(device=MICROPHONE, identity="another", is_ready=False)
    failed = system.agent.await_message(link.Failed)
    assert failed == link.Failed(id_, "there is no such microphone any more")


def test_the_users_choice_is_followed_while_it_is_lent(system: System) -> None:
    with second_microphone(system.server), playing(system.server, system.folder):
        system.agent.await_device("headset")
        _, channel = system.agent.lend()
        channel.start()
        system.await_streams("Microphone for work")
        system.server.pactl("set-default-source", "headset")
        system.await_streams("Microphone for work", source="headset")
        system.await_streams()
        channel.until("the tone", has_tone)
        system.server.pactl("set-default-source", MICROPHONE)
        system.await_streams("Microphone for work")
        assert not [said for said in system.agent.said if isinstance(said, link.Ended)]


def test_a_choice_that_is_no_microphone_is_silent(system: System) -> None:
    monitor = f"{MICROPHONE_INPUT}.monitor"
    with playing(system.server, system.folder):
        _, channel = system.agent.lend()
        system.server.pactl("set-default-source", monitor)
        try:
            text = "No microphone is the default source"
            system.agent.await_message(
                link.Devices, lambda said: text in {each.description for each in said.devices}
            )
            channel.start()
            channel.await_frame(frames.SILENCE)
            assert is_silent(channel.hear(0.2))
            assert system.streams(monitor) == system.streams() == []
        finally:
            system.server.pactl("set-default-source", MICROPHONE)
        channel.until("the tone", has_tone)


# A server that says nothing of its default source, as pipewire-pulse (0.3.65) does now and then.
DEAF = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pulse/subscribe.h>

pa_operation *pa_context_subscribe(pa_context *pulse, pa_subscription_mask_t mask,
                                   pa_context_success_cb_t done, void *context)
{
    __typeof__(pa_context_subscribe) *subscribe;

    *(void **)&subscribe = dlsym(RTLD_NEXT, "pa_context_subscribe");
    return subscribe(pulse, mask & ~PA_SUBSCRIPTION_MASK_SERVER, done, context);
}
"""


# A server that does not list its sources the first time, and says nothing afterwards.
DUMB = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pulse/introspect.h>
#include <pulse/subscribe.h>

static pa_source_info_cb_t asked;

static void fail(pa_context *pulse, const pa_source_info *info, int end, void *context)
{
    (void)info;
    if (end)
        asked(pulse, NULL, -1, context);
}

pa_operation *pa_context_get_source_info_list(pa_context *pulse, pa_source_info_cb_t told,
                                              void *context)
{
    __typeof__(pa_context_get_source_info_list) *list;
    int is_first = !asked;

    *(void **)&list = dlsym(RTLD_NEXT, "pa_context_get_source_info_list");
    asked = told;
    return list(pulse, is_first ? fail : told, context);
}

pa_operation *pa_context_subscribe(pa_context *pulse, pa_subscription_mask_t mask,
                                   pa_context_success_cb_t done, void *context)
{
    (void)pulse, (void)mask, (void)done, (void)context;
    return NULL;
}
"""


def changed(text: str, folder: Path) -> Path:
    """A pedos-sound for which these functions stand in the place of libpulse's."""
    source, library, program = folder / "other.c", folder / "other.so", folder / "other"
    source.write_text(text)
    compile_c(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"])
    program.write_text(
        f"#!/bin/sh\nASAN_OPTIONS=$ASAN_OPTIONS:verify_asan_link_order=0 LD_PRELOAD={library}"
        f' exec {sanitized("sound")}/pedos-sound "$@"\n'
    )
    program.chmod(0o755)
    return program


def test_a_choice_of_which_the_server_says_nothing_is_found(
    server: OwnServer, tmp_path: Path
) -> None:
    """Or what is lent stayed silent until something else changed."""
    agent = Agent(tmp_path / "sound.sock")
    try:
        server.pactl("set-default-source", f"{MICROPHONE_INPUT}.monitor")
        with contextlib.closing(agent), running(server, agent.path, changed(DEAF, tmp_path)):
            agent.accept()
            assert agent.await_device().description == "No microphone is the default source"
            _, channel = agent.lend()
            channel.start()
            channel.await_frame(frames.SILENCE)
            server.pactl("set-default-source", MICROPHONE)
            channel.await_frame(frames.AUDIO)
    finally:
        server.pactl("set-default-source", MICROPHONE)


def test_a_server_that_did_not_list_its_microphones_is_asked_again(
    server: OwnServer, tmp_path: Path
) -> None:
    agent = Agent(tmp_path / "sound.sock")
    with contextlib.closing(agent), running(server, agent.path, changed(DUMB, tmp_path)):
        agent.accept()
        agent.await_device()


def test_what_is_muted_at_its_server_is_silent_and_goes_on(system: System) -> None:
    with playing(system.server, system.folder):
        _, channel = system.agent.lend()
        channel.start()
        channel.until("the tone", has_tone)
        system.server.pactl("set-source-mute", MICROPHONE, "1")
        channel.until("silence", is_silent)
        system.server.pactl("set-source-mute", MICROPHONE, "0")
        channel.until("the tone again", has_tone)


def test_a_listener_that_is_muted_gets_silence_and_does_not_count(system: System) -> None:
    with playing(system.server, system.folder):
        id_, channel = system.agent.lend(muted=True)
        channel.start()
        channel.await_frame(frames.SILENCE)
        assert is_silent(channel.hear(0.2))
        assert system.streams() == []
        for is_muted in (False, True):
            system.agent.send(link.Mute(id_, is_muted))
            system.agent.await_message(link.Ready)
            channel.until("what it is", is_silent if is_muted else has_tone)
            system.await_streams(*[] if is_muted else ["Microphone for work"])


def test_who_does_not_read_loses_samples_and_nobody_else_does(system: System) -> None:
    with playing(system.server, system.folder):
        # Those who read lose nothing also where this test has to wait for a processor.
        room = 1 << 20
        channels = [system.agent.lend(vm, room=room)[1] for vm in ("work", "mail")]
        channels.append(system.agent.lend("stopped")[1])
        for channel in channels:
            channel.start()
        system.await_streams("Microphone for work, mail, stopped")
        for channel in channels[:2]:
            channel.await_frame(frames.AUDIO)
        heard: list[list[frames.Frame]] = [[], []]
        first = time.monotonic()
        while time.monotonic() - first < 1.5:
            for channel, all_heard in zip(channels, heard, strict=False):
                all_heard.extend(channel.read(0.01))
        for each in heard:
            assert sum(frame.samples for frame in each) > frames.RATE / 4
            for before, after in pairwise(each):
                assert after.counter == before.counter + before.samples
        stopped = []
        while new := channels[2].read():
            stopped += new
        assert 0 < sum(frame.samples for frame in stopped) < frames.RATE / 2
        # Whole frames, and it goes on with those of now.
        stopped.append(channels[2].await_frame(frames.AUDIO))
        # The first of now may have come while those from before were read.
        lost = [
            after.counter - before.counter - before.samples for before, after in pairwise(stopped)
        ]
        assert min(lost) == 0 < max(lost)


def test_a_source_of_another_rate_with_two_channels_is_heard(system: System) -> None:
    sink = loaded(system.server, "module-null-sink", "sink_name=other", "rate=44100", "channels=2")
    source = loaded(
        system.server, "module-remap-source", "source_name=stereo", "master=other.monitor"
    )
    try:
        device = system.agent.await_device("stereo")
        with playing(system.server, system.folder, sink="other"):
            _, channel = system.agent.lend(device="stereo", identity=device.identity)
            channel.start()
            channel.until("the tone", has_tone)
    finally:
        system.server.pactl("unload-module", source)
        system.server.pactl("unload-module", sink)


def test_storms_of_start_and_stop_open_it_rarely_and_the_last_word_counts(system: System) -> None:
    id_, channel = system.agent.lend()
    storm = [frames.Frame(frames.START), frames.Frame(frames.STOP)] * 2000
    for last, names in (
        (frames.START, ["Microphone for work"]),
        (frames.STOP, []),
    ):
        channel.say(*storm, frames.Frame(last))
        system.await_streams(*names)
    system.agent.await_listening(id_, False)
    reports = [said for said in system.agent.said if isinstance(said, link.Listening)]
    assert len(reports) < 20
    assert not [said for said in system.agent.said if isinstance(said, link.Ended)]


@contextlib.contextmanager
def standing_still(server: OwnServer) -> Iterator[None]:
    """What pedos-sound asks the server meanwhile is answered after it."""
    programs = server.programs()
    pid = programs.get("pulseaudio") or programs["pipewire-pulse"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def await_asked(agent: Agent, id_: int) -> None:
    """Until pedos-sound has asked its server for what it wants now: with each answer it has gone
    once more around its loop."""
    for _ in range(3):
        agent.send(link.Mute(id_, False))
        agent.await_message(link.Ready)


def test_a_recording_that_is_closed_while_the_server_makes_it_is_closed(system: System) -> None:
    with standing_still(system.server):
        id_, channel = system.agent.lend("mail")
        channel.start()
        system.agent.await_listening(id_, True)
        await_asked(system.agent, id_)
        system.agent.send(link.Close(id_))
        system.agent.await_ended(id_)
    _, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    system.await_streams("Microphone for work")


def test_who_comes_while_the_server_makes_the_recording_is_named_too(system: System) -> None:
    with standing_still(system.server):
        for vm in ("work", "vault"):
            id_, channel = system.agent.lend(vm)
            channel.start()
            system.agent.await_listening(id_, True)
            await_asked(system.agent, id_)
    system.await_streams("Microphone for work, vault")


@pytest.mark.parametrize(
    "raw",
    [b"\x09\x00\x00\x00\x00\x00\x00\x00", b"\x01\x00\x02\x00\x00\x00\x00\x00ab", b"\xff" * 64],
)
def test_a_malformed_frame_ends_the_stream(system: System, raw: bytes) -> None:
    id_, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    channel.socket.sendall(raw)
    assert system.agent.await_ended(id_) == "the other VM sent a malformed frame"
    system.await_streams()


def test_a_closed_channel_ends_the_stream(system: System) -> None:
    id_, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    channel.close()
    assert system.agent.await_ended(id_) == "the channel is closed"
    system.await_streams()


def test_an_agent_that_breaks_the_rules_is_left_and_found_again(system: System) -> None:
    agent = system.agent
    ours, theirs = socket.socketpair()
    pipe = os.pipe()
    lend = link.build(link.Lend(7, "mic", "default", "work", False))
    breaches: list[tuple[bytes, list[int]]] = [
        (b"\x63", []),
        (link.build(link.Hello(1, "")), []),
        (lend[:-1], [theirs.fileno()]),
        (lend, []),
        (lend, [theirs.fileno(), theirs.fileno()]),
        (lend, [pipe[0]]),
        (link.build(link.Close(1)), [theirs.fileno()]),
        (link.build(link.Welcome(1)), []),
        (bytes(link.DATAGRAM_MAX), []),
    ]
    before = len(os.listdir(f"/proc/{system.program.pid}/fd"))
    for raw, descriptors in breaches:
        agent.send_raw(raw, *descriptors)
        agent.await_end()
        agent.accept()
        agent.await_device()
    assert len(os.listdir(f"/proc/{system.program.pid}/fd")) == before
    agent.lend()
    agent.send(link.Lend(1, "mic", "default", "mail", False), theirs.fileno())
    agent.await_end()
    for fd in pipe:
        os.close(fd)
    ours.close()
    theirs.close()
    agent.accept()
    agent.await_device()


def test_all_streams_end_with_the_agent(system: System) -> None:
    _, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    system.await_streams("Microphone for work")
    system.agent.hang_up()
    system.await_streams()
    system.agent.accept()
    system.agent.await_server()
    system.agent.await_device()


def test_one_that_is_to_end_says_why_and_begins_nothing_more(system: System) -> None:
    id_, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    why = "pedos-sound ends: the user logs out, or it is restarted"
    # It waits for its server a second at most, to take the recording out.
    with standing_still(system.server):
        system.program.child.terminate()
        assert system.agent.await_ended(id_) == why
        late, _ = system.agent.lend("mail", is_ready=False)
        assert system.agent.await_message(link.Failed) == link.Failed(late, why)
        late, _ = system.agent.borrow("mail", is_ready=False)
        assert system.agent.await_message(link.Failed) == link.Failed(late, why)
        assert system.program.child.wait(PATIENCE) == 0


def test_a_refused_program_waits_and_comes_again(system: System) -> None:
    system.agent.send(link.Refused("another user has the microphones"))
    system.agent.await_end()
    system.agent.accept()
    system.agent.await_device()


def test_a_program_that_is_refused_again_and_again_says_so_once(system: System) -> None:
    one, other = "another user is at the screen", "another user has the microphones"
    system.agent.hang_up()
    for why in (one, one, other):
        system.agent.refuse(why)
    system.agent.accept()
    system.agent.await_device()
    said = system.program.log.read_text()
    assert [said.count(why) for why in (one, other)] == [1, 1]


def test_a_killed_one_leaves_nothing_and_the_next_one_is_as_the_first(system: System) -> None:
    _, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    system.program.kill()
    system.await_streams()
    system.agent.await_end()
    with running(system.server, system.agent.path) as program:
        system.agent.accept()
        system.agent.await_device()
        _, channel = system.agent.lend()
        channel.start()
        channel.await_frame(frames.AUDIO)
        assert system._replace(program=program).streams() == ["Microphone for work"]


def wakes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def test_nothing_runs_while_nobody_listens(system: System) -> None:
    _, channel = system.agent.lend()
    channel.start()
    channel.await_frame(frames.AUDIO)
    channel.stop()
    system.await_streams()
    # What the server still says of it has been read when two looks see the same.
    system.server.wait_until(
        lambda: quiet(system.program.pid), "no timer of its runs, and it reads nothing"
    )


def quiet(pid: int) -> bool:
    """Whether it sleeps for longer than its slowest timer would let it."""
    before = wakes(pid)
    time.sleep(1.2)
    return wakes(pid) == before


@pytest.mark.parametrize("kind", each_kind)
def test_a_server_that_restarts_takes_nothing_away(kind: str, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "sound.sock")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(sound_server(kind, tmp_path / "restarted", microphone=True))
        later = contextlib.ExitStack()
        later.enter_context(running(server, agent.path))
        stack_of_first = stack.pop_all()
        with later:
            agent.accept()
            agent.await_device()
            id_, channel = agent.lend()
            channel.start()
            channel.await_frame(frames.AUDIO)
            stack_of_first.close()
            agent.await_message(link.Server, lambda said: said.state != "")
            channel.await_frame(frames.SILENCE)
            with sound_server(kind, tmp_path / "restarted", microphone=True) as again:
                agent.await_server()
                agent.await_device()
                channel.await_frame(frames.AUDIO)
                with playing(again, tmp_path):
                    channel.until("the tone", has_tone)
                agent.send(link.Close(id_))
                assert agent.await_ended(id_) == ""
    agent.close()


@pytest.mark.parametrize("kind", each_kind[-1:])
def test_a_server_that_stays_away_ends_what_is_lent(kind: str, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "sound.sock")
    with contextlib.ExitStack() as stack:
        with sound_server(kind, tmp_path / "restarted", microphone=True) as server:
            stack.enter_context(running(server, agent.path))
            agent.accept()
            agent.await_device()
            id_, _ = agent.lend()
        assert agent.await_ended(id_).startswith("no sound server answers")
        agent.await_message(link.Devices, lambda said: said.devices == ())
    agent.close()


def test_the_choice_goes_on_with_another_when_its_microphone_is_unplugged(system: System) -> None:
    with second_microphone(system.server) as module:
        system.agent.await_device("headset")
        system.server.pactl("set-default-source", "headset")
        _, channel = system.agent.lend()
        channel.start()
        system.await_streams("Microphone for work", source="headset")
        system.server.pactl("unload-module", module)
        system.await_streams("Microphone for work")
        with playing(system.server, system.folder):
            channel.until("the tone", has_tone)
        assert not [said for said in system.agent.said if isinstance(said, link.Ended)]
    system.server.pactl("set-default-source", MICROPHONE)


@pytest.mark.parametrize("kind", each_kind)
def test_the_choice_ends_with_the_last_microphone(kind: str, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "sound.sock")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(sound_server(kind, tmp_path / "last", microphone=True))
        with running(server, agent.path):
            agent.accept()
            agent.await_device()
            id_, _ = agent.lend()
            server.pactl("unload-module", "module-remap-source")
            assert agent.await_ended(id_) == "the microphone was unplugged"
            agent.await_message(link.Devices, lambda said: said.devices == ())
    agent.close()
