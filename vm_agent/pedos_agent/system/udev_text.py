"""udev's database as text: its properties, and its escapes for special characters."""

from __future__ import annotations

import re
from typing import Final

_ESCAPED: Final = re.compile(rb"\\x([0-9a-fA-F]{2})")


def udev_properties(text: str) -> dict[str, str]:
    """The properties in a file of udev's database: its lines `E:NAME=VALUE`.

    Lines end in a newline and nothing else. A label may have other characters that some programs
    treat as line ends, and text behind them is no property.
    """
    found = {}
    for line in text.split("\n"):
        name, is_one, value = line.removeprefix("E:").partition("=")
        if line.startswith("E:") and is_one:
            found[name] = value
    return found


def decoded(value: str) -> str:
    r"""A value in which udev wrote bytes as `\xNN`, as it does in `ID_FS_LABEL_ENC`; those that are
    not UTF-8 are U+FFFD. It is a stranger's text still."""
    raw = value.encode("utf-8", "surrogatepass")
    plain = _ESCAPED.sub(lambda match: bytes((int(match[1], 16),)), raw)
    return plain.decode("utf-8", "replace")


def as_words(value: str) -> str:
    """As `decoded`, for people: maker and model are padded with blanks."""
    return " ".join(decoded(value).split())
