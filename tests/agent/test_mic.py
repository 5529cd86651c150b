"""A microphone goes from the session of one VM to those of others, over real channels, pumps and
sockets; only the sound servers are none. However it ends, nobody hears anything after it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_agent.connections.control import LISTENING_SECONDS
from pedos_agent.device_classes import data_channel
from pedos_agent.device_classes.mic import exporter, importer, stream
from pedos_agent.device_classes.mic.link_server import NOBODY
from pedos_agent.settings import Settings
from pedos_protocol.errors import CallError
from pedos_protocol.sound_frames import START, STOP, Frame
from pedos_protocol.sound_link import (
    DEVICES_MAX,
    Borrow,
    Close,
    Device,
    Devices,
    Ended,
    Failed,
    Lend,
    Mute,
    Ready,
    Server,
)

from .conftest import ATTACHMENT, SECONDS, FakeDom0, make_settings
from .sound_session import HEADSET, MIC, SILENCE, FakeSession, FakeStream, audio

OTHER = "ffeeddccbbaa9988"


@attrs.define(eq=False)
class Vm:
    """A VM with an agent, a dom0 that is connected to it, and its user's session, if any."""

    name: str
    dom0: FakeDom0
    nursery: trio.Nursery
    session: FakeSession

    @property
    def domid(self) -> int:
        return self.dom0.settings.domid

    async def log_in(self, *devices: Device) -> FakeSession:
        """Begin a session, in place of the one that there was."""
        self.session = await logged_in(self.dom0, self.nursery, *devices)
        return self.session


async def logged_in(dom0: FakeDom0, nursery: trio.Nursery, *devices: Device) -> FakeSession:
    assert dom0.settings.sound is not None
    session = FakeSession(dom0.settings.sound)
    session.greet(*devices)
    await nursery.start(session.run)
    await session.welcomed()
    await dom0.until(lambda report: ids(report) == {each.id for each in devices})
    return session


def ids(report: Any) -> set[str]:
    return {each.device for each in report.devices if each.device_class == "mic"}


Start = Callable[[Settings], Awaitable[FakeDom0]]
Make = Callable[..., Awaitable[Vm]]


@pytest.fixture
async def make(tmp_path: Path, start: Start, nursery: trio.Nursery) -> Make:
    """Makes a VM whose session has these microphones."""

    async def vm(name: str, domid: int, *devices: Device) -> Vm:
        settings = attrs.evolve(
            make_settings(tmp_path, name, domid), sound=tmp_path / f"{name}.sound"
        )
        dom0 = await start(settings)
        return Vm(name, dom0, nursery, await logged_in(dom0, nursery, *devices))

    return vm


@attrs.define(eq=False)
class Pair:
    source: Vm
    target: Vm

    async def lend(self, device: str = "mic", **more: Any) -> dict[str, Any]:
        target = self.target
        params = {"device_class": "mic", "vm": target.name, **more}
        return await self.source.dom0.lend(ATTACHMENT, device, target.domid, **params)

    async def borrow(self, device: str = "mic", **more: Any) -> dict[str, Any]:
        params = {"device_class": "mic", "description": "A microphone", **more}
        return await self.target.dom0.borrow(ATTACHMENT, device, self.source.domid, **params)

    async def attach(self, **more: Any) -> tuple[FakeStream, FakeStream]:
        """The streams of the two sessions."""
        await self.lend(**more)
        assert await self.borrow() == {"frontend": None}
        return await self.source.session.lent(self.target.name), await self.borrowed()

    async def borrowed(self) -> FakeStream:
        return await self.target.session.borrowed()

    async def detach(self) -> None:
        await self.target.dom0.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
        for export in self.source.dom0.report.exports:
            await self.source.dom0.call("export.stop", attachment=export.attachment)
        await self.source.dom0.call("export.stop", attachment=ATTACHMENT)

    async def is_over(self) -> None:
        """Neither agent has anything of it, and neither session."""
        for each in (self.source, self.target):
            await each.dom0.until(lambda report: not report.exports and not report.imports)
        for session in (self.source.session, self.target.session):
            await session.until(lambda session=session: all_closed(session))


def all_closed(session: FakeSession) -> bool:
    return session.over.is_set() or all(each.is_closed for each in session.streams.values())


@pytest.fixture
async def pair(make: Make) -> AsyncIterator[Pair]:
    made = Pair(await make("sys-usb", 2, MIC, HEADSET), await make("work", 3))
    yield made
    with trio.fail_after(SECONDS):
        await made.detach()
        await made.is_over()


async def test_the_microphones_of_the_session_are_listed(pair: Pair) -> None:
    mic, headset = sorted(pair.source.dom0.report.devices, key=lambda each: -len(each.description))
    assert (mic.device, mic.identity, mic.busy) == ("mic", "default", None)
    assert (headset.device, headset.identity) == (HEADSET.id, HEADSET.identity)
    assert headset.description == "USB Headset"
    pair.source.session.send(Devices((MIC,)))
    await pair.source.dom0.until(lambda report: ids(report) == {"mic"})


async def is_heard(pair: Pair) -> None:
    """What is said in the source is heard in the target, and nothing after a detach; what waits for
    a target that does not read is a fraction of a second."""
    here, there = await pair.attach()
    assert here.message == Lend(1, "mic", "default", "work", False)
    assert there.message == Borrow(1, "sys-usb", "mic", "A microphone")
    there.start()
    assert await here.next() == Frame(START)
    for number in range(50):  # the ring is written round and round
        here.send(audio(number, 480 * number))
        assert await there.next() == audio(number, 480 * number)
    here.sent.clear()
    while not here.dropped:
        here.send(audio(1))
        await trio.testing.wait_all_tasks_blocked(0.005)
    assert 16 < len(here.sent) < 40, "10 ms each"
    for _ in here.sent:
        assert await there.next() == audio(1)
    there.stop()
    assert await here.next() == Frame(STOP)
    await pair.detach()
    assert [await each.next() for each in (here, there)] == [None, None]
    await pair.is_over()


async def test_as_many_are_listed_as_a_session_may_have(pair: Pair) -> None:
    many = tuple(Device(f"{number}", f"usb:{number}", "", False) for number in range(DEVICES_MAX))
    pair.source.session.send(Devices(many))
    report = await pair.source.dom0.until(lambda report: ids(report) == {each.id for each in many})
    assert {each.description for each in report.devices} == {each.id for each in many}
    await pair.lend("63")


async def test_what_is_said_in_the_source_is_heard_in_the_target(pair: Pair) -> None:
    await is_heard(pair)


async def test_several_vms_have_it_at_once_and_each_only_once(pair: Pair, make: Make) -> None:
    here, there = await pair.attach()
    private = await make("private", 4)
    with pytest.raises(CallError, match="mic is already exported"):
        await pair.source.dom0.lend(OTHER, "mic", 3, device_class="mic", vm="work", port=8)
    await pair.source.dom0.lend(OTHER, "mic", 4, device_class="mic", vm="private", port=8)
    await private.dom0.borrow(OTHER, "mic", 2, device_class="mic", port=8)
    also_here = await pair.source.session.lent("private")
    also_there = await private.session.borrowed()
    for each in (here, also_here):
        each.send(audio(7))
    assert [await there.next(), await also_there.next()] == [audio(7)] * 2
    await pair.target.dom0.call("import.stop", attachment=ATTACHMENT)
    await pair.source.dom0.call("export.stop", attachment=ATTACHMENT)
    also_here.send(audio(8))
    assert await also_there.next() == audio(8), "the other one goes on"


async def test_a_listener_that_stops_loses_only_its_own(pair: Pair, make: Make) -> None:
    here, there = await pair.attach()
    lent, borrowed, vms = [], [], []
    for number, name in enumerate(("private", "vault"), 4):
        vms.append(await make(name, number))
        params = {"device_class": "mic", "port": number}
        await pair.source.dom0.lend(f"{number:016x}", "mic", number, vm=name, **params)
        await vms[-1].dom0.borrow(f"{number:016x}", "mic", 2, **params)
        lent.append(await pair.source.session.lent(name))
        borrowed.append(await vms[-1].session.borrowed())
    stopped, also_here = lent
    private, also_there = vms[0], borrowed[1]
    for number in range(200):  # two seconds; the stopped one has room for a fifth of it
        for each in (stopped, here, also_here):
            each.send(audio(number))
        assert await there.next() == await also_there.next() == audio(number)
    assert here.dropped == also_here.dropped == 0
    assert 0 < len(stopped.sent) < 60, "what waits for it is bounded"
    # What has waited comes in order and whole, and then what is said now.
    late = await private.session.borrowed()
    for frame in stopped.sent:
        assert await late.next() == frame
    stopped.send(audio(5))
    assert await late.next() == audio(5)


async def test_dom0_is_told_who_listens(pair: Pair) -> None:
    here, _ = await pair.attach()
    session, dom0 = pair.source.session, pair.source.dom0
    session.listens(here)
    assert await dom0.heard() == (ATTACHMENT, True)
    session.send(Devices((MIC,)))
    report = await dom0.until(lambda report: ids(report) == {"mic"})
    assert [each.listening for each in report.exports] == [True]
    session.listens(here, False)
    assert await dom0.heard() == (ATTACHMENT, False)


async def test_who_listens_is_told_twice_a_second_at_most(pair: Pair) -> None:
    here, _ = await pair.attach()
    began = trio.current_time()
    for _ in range(100):
        pair.source.session.listens(here)
        pair.source.session.listens(here, False)
    pair.source.session.listens(here)
    pair.source.session.send(Ended(here.id, ""))  # after all of them
    await pair.source.dom0.ended()
    at_most = 2 + (trio.current_time() - began) / LISTENING_SECONDS
    assert len(pair.source.dom0.all_heard()) <= at_most


async def test_a_muted_listener_is_told_to_the_session_before_dom0_hears_of_it(pair: Pair) -> None:
    here, there = await pair.attach(muted=True)
    assert here.muted
    (export,) = (await pair.source.dom0.until(lambda report: report.exports)).exports
    assert export.muted
    there.start()
    assert await here.next() == Frame(START)
    await pair.source.dom0.call("export.mute", attachment=ATTACHMENT, muted=False)
    await pair.source.session.until(lambda: not here.muted)
    here.send(audio(1))
    assert await there.next() == audio(1)
    await pair.source.dom0.call("export.mute", attachment=ATTACHMENT, muted=True)
    assert here.muted, "it is when dom0 is answered"
    here.send(SILENCE)
    assert await there.next() == SILENCE


async def test_a_session_that_does_not_mute_lends_no_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MUTE_SECONDS", 0.01)
    _here, there = await pair.attach()
    del pair.source.session.answer[Mute]
    await pair.source.dom0.call("export.mute", attachment=ATTACHMENT, muted=True)
    assert not (await pair.source.dom0.until(lambda report: not report.exports)).exports
    assert (await pair.source.dom0.ended()).reason == "pedos-sound did not mute it"
    assert await there.next() is None


async def test_one_that_is_just_being_lent_can_be_muted(pair: Pair, nursery: trio.Nursery) -> None:
    session, done = pair.source.session, []
    del session.answer[Lend], session.answer[Mute]

    async def lend() -> None:
        await pair.lend()
        done.append("lent")

    async def mute() -> None:
        await pair.source.dom0.call("export.mute", attachment=ATTACHMENT, muted=True)
        done.append("muted")

    nursery.start_soon(lend)
    here = await session.lent("work")
    nursery.start_soon(mute)
    await session.until(lambda: here.muted)
    assert done == []
    for _ in range(2):
        session.send(Ready(here.id))
    with trio.fail_after(SECONDS):
        while len(done) < 2:
            await trio.lowlevel.checkpoint()


async def test_what_is_not_lent_cannot_be_muted(pair: Pair) -> None:
    with pytest.raises(CallError, match="no attachment 00112233aabbccdd is lent here"):
        await pair.source.dom0.call("export.mute", attachment=ATTACHMENT, muted=True)


# Sessions that come and go


async def test_without_a_session_a_borrowed_one_waits_for_it(pair: Pair) -> None:
    pair.target.session.close()
    await pair.target.session.over.wait()
    await trio.testing.wait_all_tasks_blocked()
    await pair.lend()
    note = (await pair.borrow())["note"]
    assert note == f"{NOBODY}: it is heard when that changes"
    here = await pair.source.session.lent("work")
    here.send(audio(1))
    await pair.target.log_in()
    there = await pair.borrowed()
    assert await there.next() == audio(1)


async def test_without_a_sound_server_it_waits_too(pair: Pair) -> None:
    pair.target.session.send(Server("no sound server runs"))
    await trio.testing.wait_all_tasks_blocked()
    await pair.lend()
    assert "no sound server runs: it is heard" in (await pair.borrow())["note"]
    pair.target.session.send(Server(""))
    await pair.borrowed()


async def test_a_source_without_a_session_lends_nothing(pair: Pair) -> None:
    pair.source.session.close()
    await pair.source.dom0.until(lambda report: ids(report) == set())
    with pytest.raises(CallError, match="no mic device mic here"):
        await pair.lend()


async def test_the_end_of_a_session_ends_what_it_lends(pair: Pair) -> None:
    _, there = await pair.attach()
    pair.source.session.close()
    assert (await pair.source.dom0.ended()).reason.startswith("pedos-sound has ended")
    assert await there.next() is None
    await pair.source.log_in(MIC)
    await pair.target.dom0.until(lambda report: not report.imports)
    await pair.attach()


async def test_the_end_of_a_session_ends_what_it_has_borrowed(pair: Pair) -> None:
    here, _ = await pair.attach()
    pair.target.session.close()
    assert (await pair.target.dom0.ended()).reason.startswith("pedos-sound has ended")
    assert await here.next() is None
    await pair.target.log_in()
    assert not pair.target.session.streams, "no other session inherits it"


async def test_a_sound_server_that_restarts_ends_nothing(pair: Pair) -> None:
    here, there = await pair.attach()
    session, dom0 = pair.source.session, pair.source.dom0
    session.send(Server("it restarts"))
    report = await dom0.until(lambda report: all(each.stale for each in report.devices))
    assert ids(report) == {MIC.id, HEADSET.id}
    with pytest.raises(CallError, match="cannot be looked at now: it restarts"):
        await dom0.lend(OTHER, HEADSET.id, 4, device_class="mic", port=8)
    session.send(Server(""))
    session.send(Devices((MIC, HEADSET)))
    await dom0.until(lambda report: not any(each.stale for each in report.devices))
    here.send(audio(3))
    assert await there.next() == audio(3)


async def test_an_unplugged_microphone_is_not_lent_any_more(pair: Pair) -> None:
    await pair.lend(HEADSET.id)
    pair.source.session.send(Devices((MIC,)))
    assert (await pair.source.dom0.ended()).reason == "the device was unplugged"


async def test_one_that_was_replaced_is_not_lent(pair: Pair) -> None:
    (device,) = [each for each in pair.source.dom0.report.devices if each.device == HEADSET.id]
    pair.source.session.send(Devices((HEADSET._replace(identity="usb:1:2"),)))
    await pair.source.dom0.until(
        lambda report: [each.identity for each in report.devices] == ["usb:1:2"]
    )
    with pytest.raises(CallError, match="another device by now"):
        await pair.lend(HEADSET.id, instance=device.instance)
    # The session looks again: it has the last word.
    pair.source.session.answer[Lend] = lambda message: Failed(message.id, "it is another one")
    with pytest.raises(CallError, match="it is another one"):
        await pair.lend(HEADSET.id)
    assert pair.source.session.received[-1] == Lend(1, HEADSET.id, "usb:1:2", "work", False)


async def test_one_that_a_file_describes_is_only_listed(pair: Pair) -> None:
    (pair.source.dom0.settings.devices / "mic" / "paper").write_text("Drawn on paper\n")
    await pair.source.dom0.until(lambda report: "paper" in ids(report))
    with pytest.raises(CallError, match="no sound server of this VM has paper"):
        await pair.lend("paper")


@pytest.mark.parametrize("why", ["no such source", ""])
async def test_a_session_that_cannot_says_why(pair: Pair, why: str) -> None:
    pair.source.session.answer[Lend] = lambda message: Failed(message.id, why)
    with pytest.raises(CallError, match=why or "pedos-sound has ended it"):
        await pair.lend()
    pair.source.session.answer[Lend] = lambda message: Ready(message.id)
    await pair.lend()
    pair.target.session.answer[Borrow] = lambda message: Failed(message.id, why)
    with pytest.raises(CallError, match=why or "pedos-sound has ended it"):
        await pair.borrow()


async def test_what_the_target_refuses_is_told_by_the_target_alone(pair: Pair) -> None:
    await pair.lend()
    pair.target.session.answer[Borrow] = lambda message: Failed(message.id, "no PipeWire")
    with pytest.raises(CallError, match="no PipeWire"):
        await pair.borrow()
    here = await pair.source.session.lent("work")
    assert not here.is_closed, "the source has not even heard of it"
    await pair.detach()
    assert pair.source.dom0.all_ended() == []


@pytest.mark.parametrize("side", ["source", "target"])
async def test_the_side_that_ends_it_says_why_and_the_other_is_asked(pair: Pair, side: str) -> None:
    await pair.attach()
    ending, other = pair.source, pair.target
    stop = "import.stop"
    if side == "target":
        ending, other, stop = other, ending, "export.stop"
    ending.session.close()
    assert (await ending.dom0.ended()).reason.startswith("pedos-sound has ended")
    await other.session.until(lambda: all_closed(other.session))  # at once, and not a second later
    await other.dom0.call(stop, attachment=ATTACHMENT)
    assert other.dom0.all_ended() == []


async def test_a_session_that_does_not_answer_keeps_nobody_waiting(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    del pair.source.session.answer[Lend], pair.source.session.answer[Close]
    with monkeypatch.context() as patch:
        patch.setattr(stream, "READY_SECONDS", 0.01)
        patch.setattr(stream, "CLOSE_SECONDS", 0.01)
        with pytest.raises(CallError, match="pedos-sound did not answer within"):
            await pair.lend()
        await pair.source.session.until(lambda: pair.source.session.streams[1].is_closed)
    late = pair.source.session.received[-2]
    assert isinstance(late, Lend)
    for message in (Ready(late.id), Ended(late.id, ""), Ended(late.id, "")):
        pair.source.session.send(message)  # too late, and no fault
    pair.source.session.answer[Lend] = lambda message: Ready(message.id)
    pair.source.session.answer[Close] = lambda message: Ended(message.id, "")
    await pair.attach()


async def test_a_stream_that_the_session_ends_ends_the_attachment(pair: Pair) -> None:
    here, _ = await pair.attach()
    pair.source.session.send(Ended(here.id, "the device has gone"))
    assert (await pair.source.dom0.ended()).reason == "the device has gone"
    assert "the data channel ended" in (await pair.target.dom0.ended()).reason


async def test_a_stream_that_the_session_only_closes_ends_it_too(pair: Pair) -> None:
    here, _ = await pair.attach()
    here.close()
    assert (await pair.source.dom0.ended()).reason == "the data channel ended: input ended"


async def test_the_end_of_the_source_s_agent_is_heard_of_by_the_target(pair: Pair) -> None:
    await pair.attach()
    await pair.source.dom0.call("export.stop", attachment=ATTACHMENT)
    assert "peer closed the channel" in (await pair.target.dom0.ended()).reason


async def test_a_source_that_does_not_listen_is_told(pair: Pair) -> None:
    with pytest.raises(CallError, match="no channel to sys-usb"):
        await pair.borrow()


# Whatever happens, at any step


async def kill_the_source_s_session(pair: Pair) -> None:
    pair.source.session.close()


async def kill_the_target_s_session(pair: Pair) -> None:
    pair.target.session.close()


async def unplug(pair: Pair) -> None:
    pair.source.session.send(Devices(()))


async def stop_the_export(pair: Pair) -> None:
    await pair.source.dom0.call("export.stop", attachment=ATTACHMENT)


async def stop_the_import(pair: Pair) -> None:
    await pair.target.dom0.call("import.stop", attachment=ATTACHMENT)


async def mute(pair: Pair) -> None:
    await pair.source.dom0.call("export.mute", attachment=ATTACHMENT, muted=True)


EVENTS = [
    kill_the_source_s_session,
    kill_the_target_s_session,
    unplug,
    stop_the_export,
    stop_the_import,
    mute,
]
STEPS = [
    "export.opened",
    "export.listening",
    "export.connected",
    "import.connected",
    "import.ready",
    "export.stopped",
    "import.stopped",
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("step", STEPS)
async def test_whatever_happens_at_any_step_leaves_nothing(
    pair: Pair,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    event: Callable[[Pair], Awaitable[None]],
) -> None:
    happened = trio.Event()

    async def happens() -> None:
        try:
            await event(pair)
        except CallError as error:
            assert error.code == "not_found", "it has ended before"

    async def reached(name: str) -> None:
        if name == step and not happened.is_set():
            happened.set()
            nursery.start_soon(happens)
            await trio.testing.wait_all_tasks_blocked(0.01)

    for module in (data_channel, exporter, importer):
        monkeypatch.setattr(module, "reach", reached)
    with contextlib.suppress(CallError):
        await pair.lend()
        await pair.borrow()
        if step == "export.connected":  # the target may be done before the source has accepted
            with trio.fail_after(SECONDS):
                await happened.wait()
    await pair.detach()
    await pair.is_over()
    assert happened.is_set()
