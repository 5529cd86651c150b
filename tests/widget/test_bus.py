"""The connection to the message bus, on a bus of the test's own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.io.trio import open_dbus_connection
from jeepney.low_level import Parser
from pedos_widget.bus import WIDGET, Bus, Place, session_address
from pedos_widget.bus_session import BusError, Session, next_message, taken

from tests.patience import PATIENCE
from tests.widget.private_bus import PrivateBus, private_bus, program, running, until

OTHER = Place("org.pedos.Other", "/org/pedos/Other", "org.pedos.Other")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as bus:
        yield bus


async def test_the_first_program_has_the_name_and_the_second_does_not_wait_for_it(
    session: PrivateBus,
) -> None:
    async with running(Bus(session.address)) as first, running(Bus(session.address)) as second:
        assert await first.request_name(WIDGET.name)
        assert await first.request_name(WIDGET.name)
        assert not await second.request_name(WIDGET.name)


async def test_a_second_program_asks_the_first_to_show_its_devices(session: PrivateBus) -> None:
    shown: list[None] = []
    first = Bus(session.address)
    first.serve(WIDGET.path, WIDGET.interface, "Show", lambda: shown.append(None))
    async with running(first), running(Bus(session.address)) as second:
        await first.request_name(WIDGET.name)
        assert await second.call(WIDGET, "Show", start=False) == ()
        assert shown == [None]


async def test_a_call_that_fails_is_answered_so_and_logged_and_ends_nothing(
    session: PrivateBus, caplog: pytest.LogCaptureFixture
) -> None:
    first = Bus(session.address)
    first.serve(WIDGET.path, WIDGET.interface, "Show", lambda: {}["no such window"])
    async with running(first), running(Bus(session.address)) as second:
        await first.request_name(WIDGET.name)
        for _again in range(2):
            with pytest.raises(BusError) as caught:
                await second.call(WIDGET, "Show", start=False)
            assert caught.value.name == "org.freedesktop.DBus.Error.Failed"
    assert "KeyError: 'no such window'" in caplog.text


@pytest.mark.parametrize(
    ("place", "method"),
    [
        (WIDGET, "Hide"),
        (WIDGET._replace(path="/org/pedos"), "Show"),
        (WIDGET._replace(interface="org.pedos.Other"), "Show"),
    ],
)
async def test_what_is_not_served_is_refused(
    session: PrivateBus, place: Place, method: str
) -> None:
    first = Bus(session.address)
    first.serve(WIDGET.path, WIDGET.interface, "Show", lambda: pytest.fail("nobody asked"))
    async with running(first), running(Bus(session.address)) as second:
        await first.request_name(WIDGET.name)
        with pytest.raises(BusError) as caught:
            await second.call(place, method)
        assert caught.value.name == "org.freedesktop.DBus.Error.UnknownMethod"
        await second.call(WIDGET._replace(interface="org.freedesktop.DBus.Peer"), "Ping")


async def test_a_call_that_wants_no_answer_gets_none(session: PrivateBus) -> None:
    shown: list[None] = []
    first = Bus(session.address)
    first.serve(WIDGET.path, WIDGET.interface, "Show", lambda: shown.append(None))
    async with running(first), await open_dbus_connection(session.address) as stranger:
        await first.request_name(WIDGET.name)
        address = DBusAddress(*_in_order(WIDGET))
        for flags in (MessageFlag.no_reply_expected, 0):
            call = new_method_call(address, "Show")
            call.header.flags |= flags
            await stranger.send(call, serial=100 + int(flags))
        message = await stranger.receive()  # the first answer is that to the second call
        while message.header.message_type is MessageType.signal:
            message = await stranger.receive()
        assert message.header.fields[HeaderFields.reply_serial] == 100
        assert len(shown) == 2


@pytest.mark.parametrize(
    "address", [None, "unix:path=/nonexistent/bus", "autolaunch:", "tcp:host=x"]
)
async def test_no_bus_is_no_error_but_of_calls(address: str | None) -> None:
    async with running(Bus(address)) as bus:
        assert not bus.is_connected
        with pytest.raises(BusError, match="no connection to the message bus"):
            await bus.request_name(WIDGET.name)


async def test_a_program_that_is_not_there_is_a_named_error(session: PrivateBus) -> None:
    async with running(Bus(session.address)) as bus:
        with pytest.raises(BusError) as caught:
            await bus.call(OTHER, "Anything")
        assert caught.value.name == "org.freedesktop.DBus.Error.ServiceUnknown"


async def test_a_program_that_hangs_costs_the_call_its_time_out(session: PrivateBus) -> None:
    async with (
        running(Bus(session.address)) as bus,
        await open_dbus_connection(session.address) as hanging,
    ):
        with pytest.raises(BusError, match=r"no answer came within 0\.05 s"):
            await bus.call(Place(await _name(hanging), "/", "a.b"), "Anything", timeout_s=0.05)


async def _name(connection: Any) -> str:
    await trio.lowlevel.checkpoint()
    return str(connection.unique_name)


async def test_owners_of_a_name_are_told_from_the_beginning(session: PrivateBus) -> None:
    owners: list[str] = []
    bus = Bus(session.address)
    bus.on_owner(OTHER.name, owners.append)
    async with program(session, OTHER.name) as first, running(bus):
        unique = first.connection.unique_name
        assert owners == [unique]
        late: list[str] = []
        bus.on_owner(OTHER.name, late.append)
        assert late == [unique]
        await first.connection.aclose()
        await until(lambda: owners == [unique, ""])
        async with program(session, OTHER.name) as second:
            await until(lambda: owners[2:] == [second.connection.unique_name])


async def test_a_name_that_is_asked_about_while_connected_is_known_soon(
    session: PrivateBus,
) -> None:
    async with program(session, OTHER.name) as other, running(Bus(session.address)) as bus:
        owners: list[str] = []
        heard: list[object] = []
        bus.on_owner(OTHER.name, owners.append)
        await until(lambda: owners == [other.connection.unique_name])
        bus.on_signal(OTHER.name, OTHER.interface, "Said", lambda path, body: heard.append(body))
        while not heard:  # the bus may not have been asked yet
            await other.signal(OTHER.path, OTHER.interface, "Said", "s", ("word",))
            await trio.sleep(0.005)
        assert heard[0] == ("word",)


async def test_a_signal_counts_only_from_the_owner_of_the_name(session: PrivateBus) -> None:
    heard: list[tuple[str, object]] = []
    shown: list[None] = []
    bus = Bus(session.address)
    bus.on_signal(OTHER.name, OTHER.interface, "Said", lambda *said: heard.append(said))
    bus.serve(WIDGET.path, WIDGET.interface, "Show", lambda: shown.append(None))
    async with (
        program(session, OTHER.name) as owner,
        program(session, "org.pedos.Liar") as liar,
        running(bus),
    ):
        await bus.request_name(WIDGET.name)
        await liar.connection.send(said_to_the_widget("lie"))
        await liar.connection.send(new_method_call(DBusAddress(*_in_order(WIDGET)), "Show"))
        await until(lambda: shown)  # so the lie has arrived as well
        await owner.connection.send(said_to_the_widget("truth"))
        await until(lambda: heard)
        assert heard == [(OTHER.path, ("truth",))]


def _in_order(place: Place) -> tuple[str, str, str]:
    return place.path, place.name, place.interface


def said_to_the_widget(word: str) -> Message:
    """A signal to one program comes there without having been asked for."""
    where = DBusAddress(OTHER.path, interface=OTHER.interface)
    signal = new_signal(where, "Said", "s", (word,))
    signal.header.fields[HeaderFields.destination] = WIDGET.name
    return signal


async def test_a_bus_that_comes_back_is_asked_for_everything_again(session: PrivateBus) -> None:
    heard: list[object] = []
    owners: list[str] = []
    bus = Bus(session.address)
    bus.on_signal(OTHER.name, OTHER.interface, "Said", lambda path, body: heard.append(body))
    bus.on_owner(OTHER.name, owners.append)
    async with running(bus):
        await bus.request_name(WIDGET.name)
        async with program(session, OTHER.name):
            await until(lambda: owners)
        await until(lambda: owners[-1] == "")
        session.stop()
        await until(lambda: not bus.is_connected)
        session.start()
        async with program(session, OTHER.name) as other, running(Bus(session.address)) as second:
            await until(lambda: owners[-1] == other.connection.unique_name)
            await other.signal(OTHER.path, OTHER.interface, "Said", "s", ("again",))
            await until(lambda: heard == [("again",)])
            with trio.fail_after(PATIENCE):
                while await second.request_name(WIDGET.name):  # it is asked for last
                    await second._call(message_bus.ReleaseName(WIDGET.name))
                    await trio.sleep(0.005)


async def test_a_call_during_which_the_bus_goes_away_fails_at_once(session: PrivateBus) -> None:
    async with (
        running(Bus(session.address)) as bus,
        await open_dbus_connection(session.address) as hanging,
    ):
        place = Place(await _name(hanging), "/", "a.b")
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(BusError, match=r"closed|cannot|ended"):
                    await bus.call(place, "Anything", timeout_s=PATIENCE)

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            session.stop()


@pytest.mark.parametrize(
    "sent",
    [
        b"l\x04\x01\x01" + b"\xff\xff\xff\x07" + b"\x01\0\0\0" + b"\0\0\0\0",  # of 128 MiB
        b"\xff" * 64,
        b"l\x04\x01\x01" + b"\0\0\0\0" + b"\x01\0\0\0" + b"\x08\0\0\0" + b"\xff" * 8,
    ],
)
async def test_what_is_no_message_ends_the_connection(
    tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """By a bus that is none: a real one passes nothing on that is malformed."""
    caplog.set_level("INFO")
    listener = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX))
    with listener:
        await listener.bind(str(tmp_path / "bus"))
        listener.listen()

        async def play() -> None:
            while True:
                stream = trio.SocketStream((await listener.accept())[0])
                async with stream:
                    await stream.receive_some(4096)
                    await stream.send_all(b"OK 1234\r\n")
                    await stream.receive_some(4096)
                    await stream.send_all(sent)
                    while await stream.receive_some(4096):
                        pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(play)
            async with running(Bus(f"unix:path={tmp_path}/bus")) as bus:
                assert not bus.is_connected
            nursery.cancel_scope.cancel()
    assert "malformed" in caplog.text or "more than 65536 bytes" in caplog.text


def sent_to(bus: Bus) -> list[bytes]:
    """A signal that is asked for, a call that is served, and an answer."""
    owner = new_signal(message_bus, "NameOwnerChanged", "sss", (OTHER.name, "", ":1.2"))
    owner.header.fields[HeaderFields.sender] = message_bus.bus_name
    said = said_to_the_widget("word")
    said.header.fields[HeaderFields.sender] = ":1.2"
    call = new_method_call(DBusAddress(*_in_order(WIDGET)), "Show")
    call.header.serial = 3
    answer = new_method_return(Message(call.header, ()), "u", (1,))
    return [each.serialise(number) for number, each in enumerate((owner, said, call, answer), 1)]


@given(
    number=st.integers(0, 3),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
    noise=st.binary(max_size=40),
    chunk=st.integers(1, 64),
)
def test_any_bytes_are_messages_or_the_one_error(
    number: int, changes: list[tuple[int, int]], noise: bytes, chunk: int
) -> None:
    bus = Bus(None)
    bus.on_signal(OTHER.name, OTHER.interface, "Said", lambda path, body: taken(body, str))
    bus.serve(WIDGET.path, WIDGET.interface, "Show", lambda: None)
    good = sent_to(bus)
    changed = bytearray(good[number])
    for place, value in changes:
        changed[place % len(changed)] = value
    data = good[0] + bytes(changed) + noise + good[1]
    session = Session(None, bus._take_signal, bus._take_call)  # type: ignore[arg-type]
    parser = Parser()
    with contextlib.suppress(BusError):
        for start in range(0, len(data), chunk):
            parser.add_data(data[start : start + chunk])
            while (message := next_message(parser)) is not None:
                if (answer := session.take(message)) is not None:
                    answer.serialise(1)


def test_a_body_is_what_was_expected_or_an_error() -> None:
    assert taken(("a", 1, True), str, int) == ("a", 1)
    for body in ((), ("a",), (1, "a"), ("a", True)):
        with pytest.raises(BusError, match="does not carry str, int"):
            taken(body, str, int)


def test_the_session_bus_is_where_the_session_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/a")
    assert session_address() == "unix:path=/a"
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert session_address() is None
    (tmp_path / "bus").touch()
    assert session_address() == f"unix:path={tmp_path}/bus"
