"""Which file a call leads to, and what it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pedos_keeper.lookup import FOLDERS, Program, TcpPort, UnixSocket, Unusable, find


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("first", "second", "third")]
    for each in made[:2]:
        each.mkdir()
    return made  # the third does not exist


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def found(folders: list[Path], service: str, argument: str = "") -> object:
    return find(service, f"+{argument}", [str(each) for each in folders])


def test_the_administrators_folder_comes_before_those_of_qrexec() -> None:
    assert FOLDERS == (
        "/etc/pedos/services.d",
        "/run/qubes-rpc",
        "/usr/local/etc/qubes-rpc",
        "/etc/qubes-rpc",
    )


def test_a_service_for_its_argument_in_any_folder_goes_before_one_for_all(
    folders: list[Path],
) -> None:
    for_all = program(folders[0] / "test.Echo")
    for_one = program(folders[1] / "test.Echo+one")
    assert found(folders, "test.Echo", "one") == Program(str(for_one))
    assert found(folders, "test.Echo", "two") == Program(str(for_all))


def test_a_service_without_argument_may_have_a_file_of_its_own(folders: list[Path]) -> None:
    program(folders[0] / "test.Echo")
    without = program(folders[1] / "test.Echo+")
    assert found(folders, "test.Echo") == Program(str(without))


def test_the_first_folder_goes_before_the_second(folders: list[Path]) -> None:
    program(folders[1] / "test.Echo")
    first = program(folders[0] / "test.Echo")
    assert found(folders, "test.Echo") == Program(str(first))


def test_what_is_nowhere_is_not_found(folders: list[Path]) -> None:
    program(folders[0] / "test.Echo+one")
    assert found(folders, "test.Echo", "two") is None
    assert found(folders, "test.Echo", "a" * 300) is None  # no file has such a name


def test_a_link_to_dev_null_switches_a_service_off(folders: list[Path]) -> None:
    program(folders[1] / "test.Echo")
    (folders[0] / "test.Echo").symlink_to("/dev/null")
    assert found(folders, "test.Echo") is None


def test_a_link_to_a_program_is_that_program_under_the_services_name(folders: list[Path]) -> None:
    real = program(folders[1] / "real")
    (folders[0] / "test.Echo").symlink_to(real)
    assert found(folders, "test.Echo") == Program(str(folders[0] / "test.Echo"))


def test_a_socket_is_a_service(folders: list[Path]) -> None:
    path = folders[0] / "test.Echo"
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folders[0])
        listener.bind(path.name)
    assert found(folders, "test.Echo") == UnixSocket(str(path))


@pytest.mark.parametrize(
    ("target", "argument", "port"),
    [
        ("/dev/tcp/127.0.0.1/80", "", TcpPort("127.0.0.1", 80, socket.AF_INET)),
        ("/dev/tcp/127.0.0.1/80", "81", TcpPort("127.0.0.1", 80, socket.AF_INET)),
        ("/dev/tcp/127.0.0.1", "81", TcpPort("127.0.0.1", 81, socket.AF_INET)),
        ("/dev/tcp/127.0.0.1", "0000000081", TcpPort("127.0.0.1", 81, socket.AF_INET)),
        ("/dev/tcp/::1/65535", "", TcpPort("::1", 65535, socket.AF_INET6)),
    ],
)
def test_a_link_to_dev_tcp_is_a_port(
    folders: list[Path], target: str, argument: str, port: TcpPort
) -> None:
    (folders[0] / "test.Echo").symlink_to(target)
    assert found(folders, "test.Echo", argument) == port


@pytest.mark.parametrize(
    ("target", "argument", "words"),
    [
        ("/dev/tcp/localhost/80", "", "the host has to be a number"),
        ("/dev/tcp/", "80", "the host has to be a number"),
        ("/dev/tcp/127.0.0.1/0", "", "its link has to say a port from 1 to 65535"),
        ("/dev/tcp/127.0.0.1/65536", "", "its link has to say a port"),
        ("/dev/tcp/127.0.0.1/8080808080", "", "its link has to say a port"),
        ("/dev/tcp/127.0.0.1/80/81", "", "its link has to say a port"),
        ("/dev/tcp/127.0.0.1/", "80", "its link has to say a port"),
        ("/dev/tcp/127.0.0.1", "", "the argument has to say a port"),
        ("/dev/tcp/127.0.0.1", "8_0", "the argument has to say a port"),
        ("/dev/tcp/127.0.0.1", "000000", "the argument has to say a port"),
        # Its first six digits are a port.
        ("/dev/tcp/127.0.0.1", "000001999999", "the argument has to say a port"),
        ("nowhere", "", "is a link to nowhere, which does not exist"),
    ],
)
def test_a_link_that_leads_to_no_service_is_an_error_that_names_it(
    folders: list[Path], target: str, argument: str, words: str
) -> None:
    program(folders[1] / "test.Echo")  # whose place it may have been meant to take
    (folders[0] / "test.Echo").symlink_to(target)
    with pytest.raises(Unusable, match=f"^{folders[0]}/test.Echo.*{words}"):
        found(folders, "test.Echo", argument)


def test_a_file_that_nobody_may_run_is_an_error_that_says_what_to_do(folders: list[Path]) -> None:
    path = program(folders[0] / "test.Echo")
    path.chmod(0o644)
    with pytest.raises(Unusable, match=f"{path} is not executable for this user: chmod 755 {path}"):
        found(folders, "test.Echo")


def test_a_folder_and_a_fifo_are_no_services(folders: list[Path]) -> None:
    (folders[0] / "test.Folder").mkdir()
    os.mkfifo(folders[0] / "test.Fifo")
    for name in ("test.Folder", "test.Fifo"):
        with pytest.raises(Unusable, match="is neither a program, nor a socket, nor a link to"):
            found(folders, name)


def test_a_folder_that_cannot_be_looked_into_is_no_empty_one(folders: list[Path]) -> None:
    loop = folders[0] / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="Too many levels"):
        found([loop, folders[1]], "test.Echo")
