"""What a keeper has C do in one step: to find the first of some files, to start a process, and to
hear of a call and of its end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_host import _link
from pedos_host._open import first_of, plain_service
from pedos_host._spawn import reap, spawn

from tests.patience import PATIENCE

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a connection of whole messages; the second is the one that C is given."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.settimeout(PATIENCE)
        yield one, other


def test_the_first_name_in_any_folder_goes_before_the_next_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    folders = (str(tmp_path / "none"), str(one), str(two))
    assert first_of(folders, ("a+", "a"), False) is None
    (one / "a").touch()
    assert first_of(folders, ("a+", "a"), False) == (str(one / "a"), (one / "a").stat().st_mode)
    (two / "a+").mkdir()
    found = first_of(folders, ("a+", "a"), False)
    assert found is not None
    assert (found[0], stat.S_ISDIR(found[1])) == (str(two / "a+"), True)
    assert first_of((), ("a",), False) is first_of(folders, (), False) is None


def test_a_link_is_found_as_itself_or_as_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "a"
    link.symlink_to("b")
    found = first_of((str(tmp_path),), ("a",), False)
    assert found is not None
    assert stat.S_ISLNK(found[1])
    assert first_of((str(tmp_path),), ("a",), True) is None
    (tmp_path / "b").touch()
    assert first_of((str(tmp_path),), ("a",), True) == (str(link), link.stat().st_mode)


@pytest.mark.parametrize("length", [255, 256, 4095, 4096, 10_000])
def test_a_name_that_is_too_long_is_the_name_of_no_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "a").touch()
    found = first_of((str(tmp_path),), ("x" * length, "a"), False)
    assert found == (str(tmp_path / "a"), (tmp_path / "a").stat().st_mode)


def test_a_file_that_cannot_be_looked_at_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        first_of((str(tmp_path),), ("loop", "a"), True)
    assert caught.value.errno == errno.ELOOP
    assert os.fspath(caught.value.filename) == str(tmp_path / "loop")
    with pytest.raises(ValueError, match="null"):
        first_of((str(tmp_path),), ("a\0b",), True)


def test_what_is_no_program_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        spawn(str(tmp_path / "none"), ("x",), (), (0, 1, 2), -1)
    with pytest.raises(ValueError, match="null"):
        spawn("/bin/true", ("x", "a\0b"), (), (0, 1, 2), -1)
    with pytest.raises(ValueError, match="null"):
        spawn("/bin/true", ("x",), ("a", b"b\0c"), (0, 1, 2), -1)
    with pytest.raises(ValueError, match="more descriptors"):
        spawn("/bin/true", ("x",), (), (0,) * 9, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawn("/bin/true", ("x",), (), (-1,), -1)


def test_a_plain_service_is_found_unless_anything_else_is_to_be_known(tmp_path: Path) -> None:
    before, services = tmp_path / "before", tmp_path / "services"
    for folder in (before, services):
        folder.mkdir()

    def found() -> str | None:
        folders = (str(tmp_path / "none"), str(services))
        path, mode = plain_service((str(before),), folders, ("a+", "a")) or (None, 0)
        assert path is None or mode == os.lstat(path).st_mode
        return path

    program = services / "a"
    assert found() is None  # there is none
    program.touch()
    assert found() is None  # nobody may execute it
    program.chmod(0o755)
    assert found() == str(program)
    (before / "a").touch()
    assert found() is None  # it has a configuration
    (before / "a").unlink()
    (before / "a+").symlink_to("a+")
    assert found() is None  # nobody can say
    (before / "a+").unlink()
    (services / "a+").symlink_to("a")
    assert found() is None  # a link goes before it
    (services / "a+").unlink()
    (services / "a+").mkdir()
    assert found() is None  # and so does a folder
    (services / "a+").rmdir()
    assert found() == str(program)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(services / "a+"))
    assert found() == str(services / "a+")
    with pytest.raises(ValueError, match="more names"):
        plain_service(("/",) * 65, (), ())


def test_a_process_begins_with_no_signal_blocked_or_ignored(tmp_path: Path) -> None:
    # Python ignores SIGPIPE, and the C library has the child ignore the two that it uses itself.
    with open(tmp_path / "status", "wb") as written:
        command = ("cat", "/proc/self/status")
        pid, file = spawn("/bin/cat", command, (), (0, written.fileno(), 2), -1)
    os.close(file)
    os.waitpid(pid, 0)
    lines = (tmp_path / "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    assert {int(fields[name], 16) for name in ("SigBlk", "SigIgn")} == {0}


def test_a_process_can_be_waited_for_and_reaped_once(pair: Pair) -> None:
    pid, file = spawn("/bin/sh", ("sh", "-c", "exit 7"), (), (0, 1, 2), -1)
    try:
        assert _link.attend(pair[1].fileno(), file, 10) == (True, None)
        ended, status = reap(pid)
        assert (ended, os.waitstatus_to_exitcode(status)) == (pid, 7)
        with pytest.raises(ChildProcessError):
            reap(pid)
        pair[0].send(b"x" * 20)
        assert _link.attend(pair[1].fileno(), file, 10) == (True, b"x" * 10)
        pair[0].send(b"y")
        assert _link.attend(pair[1].fileno(), -1, 10) == (False, b"y")
        pair[0].close()
        assert _link.attend(pair[1].fileno(), -1, 10) == (False, b"")
    finally:
        os.close(file)


def test_a_first_message_comes_with_its_descriptors_and_more_than_four_are_closed(
    pair: Pair,
) -> None:
    one, other = pair
    with pytest.raises(BlockingIOError):
        _link.first(other.fileno(), 10, 1)
    for count in (0, 3, 4, 7):
        socket.send_fds(one, [b"given"], [0] * count)
        message, passed = _link.first(other.fileno(), 10, 0)
        assert (message, len(passed)) == (b"given", min(count, 4))
        assert not any(map(os.get_inheritable, passed))
        _link.close_all(passed)
        for each in passed:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(each)
    with pytest.raises(ValueError, match="no message"):
        _link.first(other.fileno(), 1 << 20, 0)


def test_a_message_is_sent_with_a_descriptor_or_fails_at_once(pair: Pair) -> None:
    one, other = pair
    _link.send(other.fileno(), b"plain")
    assert socket.recv_fds(one, 10, 4)[:2] == (b"plain", [])
    _link.send(other.fileno(), b"with", 0)
    message, passed, _, _ = socket.recv_fds(one, 10, 4)
    assert (message, len(passed)) == (b"with", 1)
    os.close(passed[0])
    with pytest.raises(BlockingIOError):
        while True:
            _link.send(other.fileno(), b"much" * 1000)
    one.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        _link.send(other.fileno(), b"gone")


def test_a_connection_is_taken_with_the_user_at_its_other_end(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(path)
            taken, user = _link.accept(listener.fileno())
            assert (user, os.get_inheritable(taken)) == (os.geteuid(), False)
            os.close(taken)
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        _link.accept(-1)
