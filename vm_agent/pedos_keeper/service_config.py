"""How a service is to be run: its configuration file, `key = value` a line.

    force-user = root            whatever user the policy says
    wait-for-session = true      not before the user has a session
    on-caller-gone = close       close (its stdin ends), hup or kill

The format is the one that qrexec's services have (rpc-config). A file with an error is an error of
its service, with file and line: run as somebody else, or earlier than it was meant to, a service
could do harm.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from pedos_protocol.names import is_user_name, shown

from pedos_keeper.lookup import first_file

#: In the order of the folders of the services themselves (`lookup.FOLDERS`).
FOLDERS: Final = (
    "/etc/pedos/services.conf.d",
    "/run/qubes/rpc-config",
    "/usr/local/etc/qubes/rpc-config",
    "/etc/qubes/rpc-config",
)
#: Bytes. All keys with comments have a tenth of it.
SIZE_MAX: Final = 4096

CLOSE, HUP, KILL = "close", "hup", "kill"
_FLAGS: Final = {"true": True, "false": False}
#: Numbers were its only values once.
_OLD_FLAGS: Final = {**_FLAGS, "1": True, "0": False}


class ServiceConfig(NamedTuple):
    """The configuration of a service."""

    force_user: str | None = None
    wait_for_session: bool = False
    skip_service_descriptor: bool = False
    exit_on_client_eof: bool = False
    exit_on_service_eof: bool = False
    forward_signals: bool = False
    on_caller_gone: str = CLOSE


FIELDS: Final = ServiceConfig._fields
#: First letters that a key has to have in common with another word to be named beside it.
ALIKE_MIN: Final = 3

#: That of a service without a file.
PLAIN: Final = ServiceConfig()


class ConfigError(Exception):
    """`str()` is FILE:LINE and what is wrong there."""


def find(service: str, argument: str, folders: Sequence[str] = FOLDERS) -> ServiceConfig:
    """The configuration of a call; `argument` is "+" and the argument. ConfigError, OSError."""
    found = first_file(service, argument, folders, follow=True)
    return PLAIN if found is None else parse(_read(found[0]), found[0])


def _read(path: str) -> bytes:
    """ConfigError, OSError; also if it has just been removed, as it may be on its way to another
    place."""
    # Not blocking, in case that it is a FIFO.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ConfigError(f"{path}: this is no regular file")
        raw = os.read(file, SIZE_MAX + 1)
    finally:
        os.close(file)
    if len(raw) > SIZE_MAX:
        raise ConfigError(f"{path}: the file has more than {SIZE_MAX} bytes")
    return raw


def parse(raw: bytes, path: str) -> ServiceConfig:
    """The configuration that a file's content says. ConfigError."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].count(b"\n")
        raise ConfigError(f"{path}:{before + 1}: this is not UTF-8") from None
    values: dict[str, object] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.strip(" \t\r")
        if words and not words.startswith("#"):
            try:
                _take(words, values)
            except ValueError as error:
                raise ConfigError(f"{path}:{number}: {error}") from None
    return ServiceConfig(**values)  # type: ignore[arg-type]


def _take(words: str, values: dict[str, object]) -> None:
    """Read one line into `values`. ValueError."""
    key, equals, value = words.partition("=")
    key = key.strip(" \t")
    if not equals:
        raise ValueError(f"{shown(words)} is not KEY = VALUE")
    field = key.replace("-", "_")
    if field not in ServiceConfig._fields or "_" in key:
        # A caller gets END_TEXT_MAX characters with the path: not enough for all keys.
        raise ValueError(f"{shown(key)} is not a key: {_likely(field)}")
    if field in values:
        raise ValueError(f"{key} is there twice")
    values[field] = _value(field, _unquoted(value))


def _likely(field: str) -> str:
    """What somebody may have meant who wrote this for a key."""
    wanted = field.lower()
    alike, known = max((len(os.path.commonprefix([wanted, each])), each) for each in FIELDS)
    if alike < ALIKE_MIN:
        return "docs/services.md has all keys"
    return f"{known.replace('_', '-')} is one"


def _unquoted(value: str) -> str:
    """The text of a value: in quotes, or one word; a comment may follow. ValueError."""
    value = value.strip(" \t")
    quote = value[:1]
    if quote and quote in "'\"":
        text, end, rest = value[1:].partition(quote)
        if not end:
            raise ValueError(f"the text has no closing {quote}")
        if "\\" in text:
            raise ValueError("a text cannot have a backslash here")
    else:
        text, _, rest = value.partition(" ")
        text, tab, more = text.partition("\t")
        rest = more if tab else rest
    rest = rest.strip(" \t")
    if rest and not rest.startswith("#"):
        raise ValueError(f"{shown(rest)} follows the value")
    return text


def _value(field: str, text: str) -> object:
    """The value of a field. ValueError."""
    if field == "force_user":
        if not is_user_name(text):
            raise ValueError(f"{shown(text)} is not a user's name")
        return text
    if field == "on_caller_gone":
        if text not in (CLOSE, HUP, KILL):
            raise ValueError(f"{shown(text)} is not one of {CLOSE}, {HUP}, {KILL}")
        return text
    flags = _OLD_FLAGS if field == "wait_for_session" else _FLAGS
    if text not in flags:
        raise ValueError(f"{shown(text)} is not true or false")
    return flags[text]
