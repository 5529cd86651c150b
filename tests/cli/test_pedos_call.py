"""pedos_call: a program in Python calls services, and serves them."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pedos_call
import pytest
from pedos_call import connection, serving
from pedos_protocol.call_link import Call

from tests.call_agent import Asked, FakeAgent
from tests.patience import PATIENCE

BULK = bytes(range(256)) * 8192  # more than any socket holds


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path / "work.calls")
    monkeypatch.delenv("PEDOS_CALL_SOCKET", raising=False)
    monkeypatch.setenv("PEDOS_SOCKET", str(tmp_path / "work.sock"))
    yield made
    forget()
    made.close()


def forget() -> None:
    """Closes this thread's kept connection."""
    kept = getattr(connection._kept, "connection", None)
    if kept is not None:
        kept.close()
        connection._kept.connection = None


class Answering:
    """Answers in a thread of its own; what fails there fails the test."""

    def __init__(self, *answers: Callable[[Asked], None], agent: FakeAgent) -> None:
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(answers, agent))

    def _run(self, answers: tuple[Callable[[Asked], None], ...], agent: FakeAgent) -> None:
        try:
            connected = agent.accept()
            for each in answers:
                each(agent.asked(connected))
        except BaseException as error:
            self._failed.append(error)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self._failed:
            raise self._failed[0]


def write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def echo(asked: Asked) -> None:
    asked.started()
    write(asked.stdout, asked.read_input())
    write(asked.stderr, b"echo\n")
    asked.ended("exited", 3)


def refuse(asked: Asked) -> None:
    asked.ended("refused", 0, "denied: no", "", "ask")


@pytest.mark.parametrize("data", [b"", b"text", BULK], ids=len)
def test_input_and_output_are_bytes(agent: FakeAgent, data: bytes) -> None:
    with Answering(read_then_write, agent=agent):
        done = pedos_call.call("vault", "work.Echo+x", input=data)
    assert (done.kind, done.status, done.exit_status) == ("exited", 3, 3)
    assert (done.stdout, done.stderr) == (data, b"echo\n")


def read_then_write(asked: Asked) -> None:
    assert asked.message == Call(1, True, "vault", "work.Echo", "+x", "")
    echo(asked)


@pytest.mark.parametrize("kind", ["B", "I", "d"])
@pytest.mark.parametrize("count", [0, 3, 300_000])
def test_an_input_of_items_is_their_bytes(agent: FakeAgent, kind: str, count: int) -> None:
    data = array(kind, [7] * count)
    with Answering(echo, agent=agent):
        assert pedos_call.call("vault", "work.Echo", input=data).stdout == data.tobytes()


@pytest.mark.parametrize(
    "data", ["text", 5, memoryview(b"abcdef")[::2]], ids=["text", "number", "strided"]
)
def test_an_input_that_is_no_row_of_bytes_is_of_a_wrong_type(data: Any) -> None:
    with pytest.raises(TypeError, match=r"bytes-like|contiguous"):
        pedos_call.call("vault", "work.Echo", input=data, path="/nowhere")


@pytest.mark.parametrize(
    ("kind", "status"), [("problem", 125), ("not_found", 127), ("exited", 125), ("signalled", 9)]
)
def test_only_a_service_has_a_status(agent: FakeAgent, kind: str, status: int) -> None:
    with Answering(lambda asked: asked.ended(kind, status), agent=agent):
        done = pedos_call.call("vault", "work.Echo")
    assert done.status == (status if kind in ("exited", "signalled") else 0)


def test_calls_share_a_connection_and_never_their_bytes(agent: FakeAgent) -> None:
    with Answering(echo, echo, refuse, echo, agent=agent):
        for data in (b"one", b"two"):
            assert pedos_call.call("vault", "work.Echo", input=data).stdout == data
        denied = pedos_call.call("vault", "work.Other")
        assert (denied.kind, denied.exit_status, denied.stdout) == ("refused", 126, b"")
        assert (denied.text, denied.hint, denied.request) == ("denied: no", "ask", "17")
        assert pedos_call.call("vault", "work.Echo", input=b"four").stdout == b"four"


def test_a_connection_that_the_agent_has_closed_is_made_anew(agent: FakeAgent) -> None:
    with Answering(echo, agent=agent):
        pedos_call.call("vault", "work.Echo")
    for each in agent._open[1:]:
        each.close()
    with Answering(echo, agent=agent):
        assert pedos_call.call("", "work.Echo", input=b"x").stdout == b"x"


def test_an_empty_target_is_the_default_one(agent: FakeAgent) -> None:
    def look(asked: Asked) -> None:
        assert asked.message == Call(1, True, "@default", "a.B", "+c+d", "root")
        asked.ended()

    with Answering(look, agent=agent):
        pedos_call.call("", "a.B+c+d", user="root")


def test_pipes_and_sockets_are_handed_over(agent: FakeAgent) -> None:
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()

    def look(asked: Asked) -> None:
        assert not asked.message.may_shut_down
        write(asked.stdout, asked.read_input())
        write(asked.stderr, b"err")
        asked.ended()

    os.write(writer, b"in")
    os.close(writer)
    with Answering(look, agent=agent):
        done = pedos_call.call("vault", "a.B", stdin=reader, stdout=theirs, stderr=theirs)
    assert (done.exit_status, done.stdout, done.stderr) == (0, b"", b"")
    os.close(reader)
    theirs.close()
    assert ours.recv(9) == b"inerr"
    ours.close()


def test_a_service_that_reads_nothing_does_not_hold_up_its_output(agent: FakeAgent) -> None:
    def talk(asked: Asked) -> None:
        write(asked.stdout, BULK)
        asked.ended("exited", 0)

    with Answering(talk, agent=agent):
        assert pedos_call.call("vault", "a.B", input=BULK).stdout == BULK


def test_check_raises_with_all_that_is_known(agent: FakeAgent) -> None:
    with Answering(echo, agent=agent), pytest.raises(pedos_call.CallFailedError) as caught:
        pedos_call.call("vault", "work.Echo", input=b"x", check=True)
    assert caught.value.completed.stdout == b"x"
    assert str(caught.value) == "the service exited with status 3"


def until_hung_up(asked: Asked) -> None:
    assert asked.hear() is None


def test_a_call_that_takes_too_long_is_aborted(agent: FakeAgent) -> None:
    with Answering(until_hung_up, agent=agent), pytest.raises(TimeoutError, match="too long"):
        pedos_call.call("vault", "a.B", timeout=0.01)


@pytest.mark.parametrize("timeout", [1e9, math.inf])
def test_a_call_may_take_as_long_as_it_likes(agent: FakeAgent, timeout: float) -> None:
    with Answering(echo, agent=agent):
        assert pedos_call.call("vault", "a.B", input=b"x", timeout=timeout).stdout == b"x"


def test_what_is_no_time_is_refused_before_the_call() -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        pedos_call.call("vault", "a.B", timeout=math.nan, path="/nowhere")


def test_a_service_cannot_fill_the_memory(agent: FakeAgent) -> None:
    def flood(asked: Asked) -> None:
        write(asked.stdout, b"x" * 100)
        until_hung_up(asked)

    with (
        Answering(flood, agent=agent),
        pytest.raises(pedos_call.OutputTooLongError, match="more than 99 bytes"),
    ):
        pedos_call.call("vault", "a.B", output_max=99)


def test_an_agent_that_goes_away_is_no_result(agent: FakeAgent) -> None:
    def go(asked: Asked) -> None:
        asked.started()
        asked.close()
        asked.connection.close()

    with (
        Answering(go, agent=agent),
        pytest.raises(pedos_call.UnreachableError, match="gone away"),
    ):
        pedos_call.call("vault", "a.B")


def test_without_an_agent_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(pedos_call.UnreachableError, match="cannot reach this VM's agent"):
        pedos_call.call("vault", "a.B", path=str(tmp_path / "none"))


@pytest.mark.parametrize(("target", "service"), [("va\0lt", "a.B"), ("vault", "a.B+" + "x" * 1000)])
def test_a_name_that_cannot_be_is_a_wrong_value(
    agent: FakeAgent, target: str, service: str
) -> None:
    with pytest.raises(ValueError, match="no field of a message"):
        pedos_call.call(target, service)


def test_files_are_for_qvm_call(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as nothing:
        with pytest.raises(ValueError, match="stdin is neither a pipe nor a socket: run qvm-call"):
            pedos_call.call("vault", "a.B", stdin=nothing)
        with pytest.raises(ValueError, match="either input or stdin"):
            pedos_call.call("vault", "a.B", stdin=nothing, input=b"x")


def test_no_call_leaves_a_descriptor(agent: FakeAgent) -> None:
    with Answering(*[echo] * 50, agent=agent):
        pedos_call.call("vault", "a.B", input=b"x")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(49):
            pedos_call.call("vault", "a.B", input=b"x")
    assert len(os.listdir("/proc/self/fd")) <= before


# Serving


def test_a_service_answers_calls_one_by_one(tmp_path: Path) -> None:
    def answer(served: pedos_call.Served) -> None:
        heard = served.stream.recv(100)
        if served.argument == "fail":
            raise ZeroDivisionError
        served.stream.sendall(f"{served.source} {served.target} ".encode() + heard)

    path = str(tmp_path / "work.Echo")
    listener = serving.listen(path)

    def serve() -> None:
        with contextlib.suppress(OSError):  # the test has closed it
            serving.serve_on(listener, answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for argument, target, said in (("x", "vault", b"work vault hi"), ("fail", "vault", b"")):
        with socket.socket(socket.AF_UNIX) as keeper:
            keeper.connect(path)
            keeper.sendall(f"work.Echo+{argument} work name {target}\0hi".encode())
            keeper.shutdown(socket.SHUT_WR)
            with keeper.makefile("rb") as output:
                assert output.read() == said
    with pytest.raises(OSError, match="in use"):
        serving.listen(path)
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)
    listener.close()
    serving.listen(path).close()  # a stale socket is replaced


def fill_backlog(path: Path) -> list[socket.socket]:
    """A program that listens, and takes none of those that wait."""
    listener, waiting = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    waiting.connect(str(path))
    return [listener, waiting]


def test_nothing_but_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "file", tmp_path / "link", tmp_path / "folder"
    file.write_text("notes")
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    link.symlink_to(stale)
    folder.mkdir()
    for each in (file, link, folder):
        with pytest.raises(OSError, match="something else than a socket") as caught:
            serving.listen(str(each))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOTSOCK, str(each))
    assert file.read_text() == "notes"
    assert link.is_symlink() and stale.exists()
    with pytest.raises(FileNotFoundError):
        serving.listen(str(tmp_path / "none" / "a.B"))
    busy = tmp_path / "busy"
    others = fill_backlog(busy)
    with pytest.raises(OSError, match="in use"):
        serving.listen(str(busy))
    assert busy.exists()
    for other in others:
        other.close()


def test_a_socket_of_another_user_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(FileExistsError, match="another user"):
        serving.listen(str(stale))
    assert stale.exists()


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
def test_what_a_handler_raises_ends_its_call_alone(
    raised: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    for _, theirs in pairs:
        theirs.sendall(b"a.B+ work\0")
    served: list[str] = []

    def answer(call: pedos_call.Served) -> None:
        served.append(call.service)
        raise raised

    with pytest.raises(OSError, match="Bad file"):
        serving.serve_on(cast("Any", Listener(*(ours for ours, _ in pairs))), answer)
    assert served == ["a.B"] * 2
    assert capsys.readouterr().err.count(f"\n{raised.__name__}") == 2
    for _, theirs in pairs:
        assert theirs.recv(9) == b"", "the call has an end"
        theirs.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_service_ends_when_its_socket_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """And no handler runs in the thread that serves, where signals are handled."""
    path = str(tmp_path / "a.B")
    made: list[socket.socket] = []
    seen: list[int] = []

    def listen(path: str) -> socket.socket:
        made.append(listener := serving_listen(path))
        with socket.socket(socket.AF_UNIX) as keeper:
            keeper.connect(path)
            keeper.sendall(b"a.B+ work\0")
        return listener

    def answer(_: pedos_call.Served) -> None:
        seen.append(threading.get_ident())
        made[0].shutdown(socket.SHUT_RDWR)

    serving_listen = serving.listen
    monkeypatch.setattr(serving, "listen", listen)
    with pytest.raises(OSError, match="Invalid argument"):
        pedos_call.serve(path, answer, threads=threads)
    assert seen and seen[0] != threading.get_ident()


def test_a_header_in_pieces_has_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a byte now and then would keep a thread."""
    waits: list[float | None] = []

    class Slow(socket.socket):
        """A byte comes every four seconds."""

        def settimeout(self, value: float | None) -> None:
            waits.append(value)

        def recv(self, size: int, flags: int = 0) -> bytes:
            if waits[-1] is not None and waits[-1] < 4:
                raise TimeoutError
            return b"a"

    times = iter(range(0, 100, 4))
    monkeypatch.setattr(serving.time, "monotonic", lambda: next(times))
    with Slow() as stream, pytest.raises(TimeoutError):
        serving.receive_header(stream)
    assert waits == [6.0, 2.0]


class Listener:
    """Accepts what it is given, and is closed then."""

    def __init__(self, *given: socket.socket | int) -> None:
        self._given = list(given)

    def accept(self) -> tuple[socket.socket, object]:
        found = self._given.pop(0) if self._given else errno.EBADF
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        return found, None


def test_neither_want_of_descriptors_nor_silence_ends_a_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "RETRY_SECONDS", 0)
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.01)
    pairs = [socket.socketpair() for _ in range(2)]
    pairs[1][1].sendall(b"a.B+ work\0")
    served: list[float | None] = []
    listener = Listener(errno.EMFILE, errno.EMFILE, pairs[0][0], pairs[1][0])
    with pytest.raises(OSError, match="Bad file"):
        serving.serve_on(
            cast("Any", listener), lambda call: served.append(call.stream.gettimeout())
        )
    assert served == [None]
    assert capsys.readouterr().err.count("no call can be taken now") == 1
    for pair in pairs:
        pair[1].close()


@pytest.mark.parametrize(
    ("pieces", "served"),
    [
        ([b"a.B+ work\0"], ("a.B", "", "work", "", "")),
        ([b"a.B+c+d wo", b"rk keyword @default\0"], ("a.B", "c+d", "work", "keyword", "@default")),
        ([b"a.B+ work\0rest"], ("a.B", "", "work", "", "")),
    ],
)
def test_a_connection_says_first_which_call_it_is_for(
    pieces: list[bytes], served: tuple[str, ...]
) -> None:
    ours, theirs = socket.socketpair()

    def send() -> None:
        for piece in pieces:
            theirs.sendall(piece)

    thread = threading.Thread(target=send)
    thread.start()
    with ours, theirs:
        assert serving.receive_header(ours)[:5] == served
        thread.join()
        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == pieces[-1].partition(b"\0")[2]


@pytest.mark.parametrize("raw", [b"", b"a.B", b"a.B\0", b"a b c\0", b"x" * 2000, b"\xff x\0"])
def test_one_that_does_not_is_refused(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match=r"call|codec"):
            serving.receive_header(ours)
