"""The configuration files of services."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_keeper.service_config import (
    FOLDERS,
    SIZE_MAX,
    ConfigError,
    ServiceConfig,
    find,
    parse,
)
from pedos_protocol.keeper_link import TEXT_MAX
from pedos_protocol.names import END_TEXT_MAX

#: What the packages bring.
SHIPPED = Path(__file__).parents[2] / "vm_agent" / "qrexec"


def parsed(text: str) -> ServiceConfig:
    return parse(text.encode(), "/etc/x")


def test_the_folders_are_those_of_the_services_in_their_order() -> None:
    assert FOLDERS == (
        "/etc/pedos/services.conf.d",
        "/run/qubes/rpc-config",
        "/usr/local/etc/qubes/rpc-config",
        "/etc/qubes/rpc-config",
    )


def test_a_file_says_how_a_service_is_run() -> None:
    assert parsed(
        """
        # as its package has it
        force-user = 'root'
        wait-for-session=1
        skip-service-descriptor = true   # a web server knows nothing of it
        exit-on-client-eof\t=\ttrue
        exit-on-service-eof = false
        forward-signals = true
        on-caller-gone = "hup"
        """
    ) == ServiceConfig(
        force_user="root",
        wait_for_session=True,
        skip_service_descriptor=True,
        exit_on_client_eof=True,
        exit_on_service_eof=False,
        forward_signals=True,
        on_caller_gone="hup",
    )


def test_what_is_shipped_is_understood() -> None:
    """By the name by which `qvm-run --gui` calls it."""
    config = find("qubes.VMShell", "+WaitForSession", [str(SHIPPED)])
    assert config == ServiceConfig(wait_for_session=True)


def test_a_service_without_a_file_has_no_wishes() -> None:
    assert find("test.Echo", "+", ["/nonexistent"]) == ServiceConfig() == parsed("")
    assert ServiceConfig().on_caller_gone == "close"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("force-user", "'force-user' is not KEY = VALUE"),
        ("force_user = root", "'force_user' is not a key: force-user is one"),
        ("On-Caller-Gon = hup", "'On-Caller-Gon' is not a key: on-caller-gone is one"),
        ("exit-on-service = 1", "'exit-on-service' is not a key: exit-on-service-eof is one"),
        ("user = root", "'user' is not a key: docs/services.md has all keys"),
        ("force-user =", "'' is not a user's name"),
        ("force-user = ../root", "'../root' is not a user's name"),
        ("force-user = a b", "'b' follows the value"),
        ("force-user = 'root", "the text has no closing '"),
        ("force-user = 'ro\\x6ft'", "a text cannot have a backslash here"),
        ("wait-for-session = yes", "'yes' is not true or false"),
        ("exit-on-client-eof = 1", "'1' is not true or false"),
        ("on-caller-gone = term", "'term' is not one of close, hup, kill"),
        ("force-user = a\nforce-user = b", "force-user is there twice"),
    ],
)
def test_a_line_that_is_wrong_is_an_error_with_file_and_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(f"# a comment\n\n{text}\n")
    last = 3 + text.count("\n")
    assert str(caught.value).startswith(f"/etc/x:{last}: {words}")


def test_every_error_fits_into_what_a_caller_gets() -> None:
    """With the longest folder, a service of a usual length and the last line of a large file."""
    path, word = f"{max(FOLDERS, key=len)}/{'a' * 32}+{'b' * 18}", "x" * SIZE_MAX
    keys = [each.replace("_", "-") for each in ServiceConfig._fields]
    wrong = [word, f"{word} = a", "no = a", "exit_on_service_eof = true"]
    wrong += [
        f"{key}{end}" for key in keys for end in ("", "s = a", f" = {word}", " = 'a", " = a a")
    ]
    wrong += [f"{key} = '\\'" for key in keys]
    wrong += [f"force-user = a # {word}\nforce-user = a"]
    for text in wrong:
        with pytest.raises(ConfigError) as caught:
            parse(b"\n" * 3000 + text.encode(), path)
        told = str(caught.value)
        assert len(told) <= END_TEXT_MAX < TEXT_MAX, told


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_an_error_that_names_the_file(raw: bytes) -> None:
    try:
        assert isinstance(parse(raw, "/etc/x"), ServiceConfig)
    except ConfigError as error:
        assert str(error).startswith("/etc/x:")
        assert str(error).isprintable()


def test_the_file_for_the_argument_goes_before_the_one_for_all(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for each in (first, second):
        each.mkdir()
    (first / "test.Echo").write_text("force-user = one\n")
    (second / "test.Echo+x").write_text("force-user = two\n")
    folders = [str(first), str(second)]
    assert find("test.Echo", "+x", folders).force_user == "two"
    assert find("test.Echo", "+", folders).force_user == "one"


def test_a_file_that_is_not_text_or_is_too_long_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("#" * (SIZE_MAX + 1))
    (tmp_path / "latin").write_bytes(b"#\nforce-user = \xe4\n")
    os.mkfifo(tmp_path / "fifo")
    for name, words in {
        "long": f"{tmp_path}/long: the file has more than {SIZE_MAX} bytes",
        "latin": f"{tmp_path}/latin:2: this is not UTF-8",
        "fifo": f"{tmp_path}/fifo: this is no regular file",
    }.items():
        with pytest.raises(ConfigError) as caught:
            find(name, "+", [str(tmp_path)])
        assert str(caught.value) == words


def test_a_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="Too many levels"):
        find("loop", "+", [str(tmp_path)])
