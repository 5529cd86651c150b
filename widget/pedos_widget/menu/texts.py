"""Texts as the entries and tooltips of a menu show them. No Qt.

The model's texts have been parsed. Here, as the last line of defence, what could not be seen or
would change the line becomes `_`, and nothing is taken for markup.
"""

from __future__ import annotations

from html import escape

from pedos_protocol.names import printable_text

TEXT_MAX = 512
"""Characters of one line: more than fit on any screen, so that a longer one costs no time."""

LINES_MAX = 12
"""Lines of one tooltip: a sentence or two, with a rule's in it."""


def plain(text: str) -> str:
    """`text` in one line, without anything that cannot be seen."""
    return printable_text(text, TEXT_MAX)


def unmarked(text: str) -> str:
    """`text` for an entry of a menu, where a single `&` would underline the letter after it."""
    return plain(text).replace("&", "&&")


def tooltip(text: str) -> str:
    """`text` for a tooltip, which is rich text as soon as something in it looks like a tag."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        lines[LINES_MAX - 1 :] = ["..."]
    # The outer tag makes it rich text always: otherwise `&amp;` would be shown as it stands.
    return f"<qt>{'<br>'.join(escape(plain(line)) for line in lines)}</qt>" if text else ""
