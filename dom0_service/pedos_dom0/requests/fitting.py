"""The part of a list that fits into an answer, which is one frame; the answer counts the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.fields import TEXT_MAX
from pedos_protocol.messages import DetachItem, ErrorInfo, UnassignItem
from pedos_protocol.names import printable_text
from pedos_protocol.schema import Room

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T", bound=attrs.AttrsInstance)
Result = TypeVar("Result", DetachItem, UnassignItem)

# Bytes of an answer beside the counted items: its envelope.
ENVELOPE_MAX = 1024
# Bytes of one list in an answer that has other parts: of two lists, and all texts.
LIST_MAX = 24 * 1024
# The same of an answer that is a list of results alone.
RESULTS_ENVELOPE_MAX = 256
# When many devices could not be detached, the answer with the reason for each must still fit into
# one frame. 64 attached and 64 assigned devices, with the longest names, are 128 items of 480
# bytes.
BRIEF_MESSAGE_MAX = 128
BRIEF_RULE_MAX = 64


def fitting(items: Iterable[T], limit: int) -> tuple[T, ...]:
    """The first of the items that fit into so many bytes; at least one."""
    kept: list[T] = []
    room = Room(limit)
    for item in items:
        if not room.takes(item) and kept:
            break
        kept.append(item)
    return tuple(kept)


def fitting_texts(texts: Iterable[str], limit: int) -> tuple[str, ...]:
    """The first of the texts that fit into so many bytes, each as an answer has it."""
    kept: list[str] = []
    room = Room(limit)
    for text in map(bounded_text, texts):
        if not room.takes(text):
            break
        kept.append(text)
    return tuple(kept)


def results_fitting(items: Sequence[Result]) -> tuple[Result, ...]:
    """All results, one for each device: with shortened errors, if they do not fit into one frame
    otherwise."""
    room = Room(FRAME_MAX - RESULTS_ENVELOPE_MAX)
    if all(room.takes(item) for item in items):
        return tuple(items)
    return tuple(
        item if item.error is None else attrs.evolve(item, error=_brief_error(item.error))
        for item in items
    )


def _brief_error(error: ErrorInfo) -> ErrorInfo:
    """The beginning of its sentence, and of its data the request and the end of a rule's place,
    which has the line: for an answer with very many."""
    data = {name: error.data[name] for name in ("request", "rule") if name in error.data}
    if isinstance(rule := data.get("rule"), str):
        data["rule"] = rule[-BRIEF_RULE_MAX:]
    return ErrorInfo(error.code, printable_text(error.message, BRIEF_MESSAGE_MAX), data)


def bounded_text(text: str) -> str:
    """A text as an answer has it."""
    return printable_text(text, TEXT_MAX)
