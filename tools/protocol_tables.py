"""Writes the parts of docs/protocol.md that are made from the code: the states and the methods.

usage: .venv/bin/python tools/protocol_tables.py       (a test says when it has to be run)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attr
from pedos_protocol import connection, messages
from pedos_protocol.fields import is_optional, version_of

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
BEGIN = "<!-- made by tools/protocol_tables.py: do not edit below -->\n"


def came_with(version: int) -> str:
    """The mark of what came with this version of the protocol; the first has none."""
    return "" if version == 1 else f"<sup>{version}</sup>"


def keys(message_class: type[Any]) -> str:
    """The keys of a message, as they stand on the wire; with `?` if they may be missing."""
    fields = attr.fields(message_class)
    marked = (f"`{a.name}{'?' * is_optional(a)}`{came_with(version_of(a))}" for a in fields)
    return ", ".join(marked) or "none"


def summary(message_class: type[Any]) -> str:
    """The first line of what a message's class says of itself."""
    return (message_class.__doc__ or "").strip().partition("\n")[0]


def generated() -> str:
    lines = [
        "## States of each direction",
        "",
        "```mermaid",
        connection.diagram().rstrip(),
        "```",
        "",
        "## Methods",
        "",
        "| method | parameters | result | |",
        "|---|---|---|---|",
    ]
    for method, spec in messages.SCHEMA.items():
        result = "(notice)" if spec.result is None else keys(spec.result)
        name = f"`{method}`{came_with(spec.since)}"
        lines.append(f"| {name} | {keys(spec.params)} | {result} | {summary(spec.params)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """`text` with its generated part made anew."""
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + generated()


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
