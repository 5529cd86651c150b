"""A question that dom0 asks its user: parsed from the wire, and as lines for a terminal.

Every prompter parses with this; `prompt_waiting` has the rules that they share.
"""

from __future__ import annotations

from pedos_protocol.device_classes import class_named
from pedos_protocol.kind_words import in_short
from pedos_protocol.names import (
    harmless_text,
    is_identity,
    parse_device_class,
    parse_device_id,
    parse_vm_name,
    shown,
)

from pedos_cli.device_list import size_text
from pedos_cli.output import TEXT_MAX, escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias, TypeVar

    T = TypeVar("T")
    Said: TypeAlias = tuple[str, str, str, str, str, tuple[tuple[str, str], ...]]

CANDIDATES_MAX = 256
"""VMs to choose from: as many as one list of the protocol holds."""

MODES = ("required", "auto-attach", "ask")
"""Those of an assignment, which asks when its device is there."""

ASK, CALL = METHODS = ("prompt.ask", "prompt.call")
"""What dom0 asks a prompter: about a device, and about a call of a service."""

ARGUMENT_MAX = 512
"""Characters of a call's argument, which is shown whole: as many as a column of a rule may have."""

SERVICE_MAX = 255
"""Characters of the name of a service that is called: all that policy knows."""

NAME_MAX = 64
"""Characters of a request's id and of a device's service to show."""

WIDTH_MIN = 40
"""Columns to use even if the terminal claims to have fewer (or none at all)."""

RULE_MAX = 72
"""Columns of the line above a question: enough to be seen on the widest terminal."""

LABEL_WIDTH = 14
"""Columns before a field: the longest label, and two blanks."""

# The words for the verb of a device service, and for the choice of a VM.
_VERBS = {
    "attach": ("attach {}", "which VM gets it?"),
    "detach": ("detach {}", "which VM loses it?"),
    "assign": ("have {} attached at every start", "which VM gets it?"),
    "list": ("see {}", "for which VM?"),
}


class Question:
    """May `source` have this, and which of `candidates` gets it? `deadline` is in seconds of the
    reader's clock; the answer has to carry `call_id`.

    `asker` is who asks: the source, or an assignment, whose mode is `mode` then. `doing` is the
    request, without who and which device: `attach a block device`. `choosing` is the heading of the
    choices. `fields` are labels with what a person has to know. For a screen with words of its own:
    `verb` is one of a device's service, or `call`, and `device_class` is "" for a call.
    """

    __slots__ = (
        "asker", "call_id", "candidates", "choosing", "deadline", "default", "device_class",
        "doing", "fields", "mode", "request", "service", "source", "verb",
    )  # fmt: skip

    def __init__(
        self,
        *,
        call_id: int,
        deadline: float,
        request: str,
        source: str,
        asker: str,
        mode: str | None,
        service: str,
        verb: str,
        device_class: str,
        candidates: tuple[str, ...],
        default: str | None,
        doing: str,
        choosing: str,
        fields: tuple[tuple[str, str], ...],
    ) -> None:
        self.call_id = call_id
        self.deadline = deadline
        self.request = request
        self.source = source
        self.asker = asker
        self.mode = mode
        self.service = service
        self.verb = verb
        self.device_class = device_class
        self.candidates = candidates
        self.default = default
        self.doing = doing
        self.choosing = choosing
        self.fields = fields


def parse(
    call_id: int, untrusted_params: Mapping[str, object], now: float, method: str = ASK
) -> Question:
    """Return the question that a request of METHODS carries; ValueError says why it is malformed.

    dom0 checked all of this. It is checked again because a person can judge only by what the screen
    says.
    """
    said = _device if method == ASK else _call
    service, verb, device_class, doing, choosing, fields = said(untrusted_params)
    candidates, default = _parse_candidates(untrusted_params)
    source = parse_vm_name(untrusted_params.get("source"))
    mode = _parse_mode(untrusted_params.get("assigned"))
    return Question(
        call_id=call_id,
        deadline=now + max(0, _take(untrusted_params, "timeout_s", int)),
        request=harmless_text(_take(untrusted_params, "request", str), NAME_MAX),
        source=source,
        asker=source if mode is None else f"an assignment ({mode})",
        mode=mode,
        service=service,
        verb=verb,
        device_class=device_class,
        candidates=candidates,
        default=default,
        doing=doing,
        choosing=choosing,
        fields=fields,
    )


def _call(untrusted_params: Mapping[str, object]) -> Said:
    """The service, its verb and class, `doing`, `choosing` and `fields` of a question about a
    call."""
    untrusted_service = _take(untrusted_params, "service", str)
    if len(untrusted_service) > SERVICE_MAX:
        raise ValueError("the service's name is too long")  # cut, it would look like another one
    service = harmless_text(untrusted_service, SERVICE_MAX)
    untrusted_argument = _take(untrusted_params, "argument", str)
    if len(untrusted_argument) > ARGUMENT_MAX or not untrusted_argument.isprintable():
        raise ValueError("the argument is too long, or cannot be shown")
    if untrusted_argument[:1] != "+" or " " in untrusted_argument:
        raise ValueError("the argument does not begin with '+', or has a blank in it")
    # As policy writes it, with the '+', and escaped by the screen, so that no two look the same.
    fields = (("argument", untrusted_argument),)
    return service, "call", "", f"call {service}", "in which VM?", fields


def _device(untrusted_params: Mapping[str, object]) -> Said:
    """The same of a question about a device."""
    service = harmless_text(_take(untrusted_params, "service", str), NAME_MAX)
    backend = parse_vm_name(untrusted_params.get("backend"))
    untrusted_identity = _take(untrusted_params, "identity", str)
    if not is_identity(untrusted_identity):
        raise ValueError(f"{shown(untrusted_identity)} is not a device's identity")
    untrusted_size = untrusted_params.get("size")
    if untrusted_size is not None and (type(untrusted_size) is not int or untrusted_size < 0):
        raise ValueError("the size is not a number of bytes")
    name = parse_device_class(untrusted_params.get("device_class"))
    description = harmless_text(_take(untrusted_params, "description", str))
    verb = "".join(service.split(".")[1:2])
    access = _access(name, verb, read_only=_take(untrusted_params, "read_only", bool))
    known = _VERBS.get(verb)
    fields = (
        ("device", f"{backend}:{parse_device_id(untrusted_params.get('device'))}"),
        ("identity", untrusted_identity or "(none)"),
        ("has", in_short(name, untrusted_identity)),
        ("says it is", description or "(nothing)"),
        ("size", "" if untrusted_size is None else size_text(untrusted_size)),
        ("access", access),
    )
    what = _one_of(name)
    doing = known[0].format(what) if known else f"use {service} on {what}"
    return service, verb, name, doing, known[1] if known else "for which VM?", fields


def _parse_mode(untrusted_mode: object) -> str | None:
    if untrusted_mode is None:
        return None
    if isinstance(untrusted_mode, str) and untrusted_mode in MODES:
        return untrusted_mode
    raise ValueError(f"{shown(untrusted_mode)} is no mode of an assignment")


def _one_of(name: str) -> str:
    """`a block device`"""
    described = class_named(name)
    one = described.one if described else f"{name} device"
    return f"{'an' if one[0] in 'aeio' else 'a'} {one}"  # not u: a USB device


def _access(name: str, verb: str, *, read_only: bool) -> str:
    if read_only:
        return "read-only"
    described = class_named(name)
    is_given = verb in ("attach", "assign")
    return "read and write" if described and described.written and is_given else ""


def _parse_candidates(
    untrusted_params: Mapping[str, object],
) -> tuple[tuple[str, ...], str | None]:
    untrusted_candidates = untrusted_params.get("candidates")
    if not isinstance(untrusted_candidates, list | tuple):
        raise ValueError("the candidates are not a list")
    if not 0 < len(untrusted_candidates) <= CANDIDATES_MAX:
        raise ValueError(f"there are not 1 to {CANDIDATES_MAX} candidates")
    candidates = tuple(parse_vm_name(each) for each in untrusted_candidates)
    if len(set(candidates)) < len(candidates):
        raise ValueError("a candidate is named twice")
    untrusted_default = untrusted_params.get("default")
    if untrusted_default is None:
        return candidates, None
    default = parse_vm_name(untrusted_default)
    if default not in candidates:
        raise ValueError(f"the default {default} is not one of the candidates")
    return candidates, default


def _take(untrusted_params: Mapping[str, object], key: str, kind: type[T]) -> T:
    value = untrusted_params.get(key)
    if type(value) is not kind:
        raise ValueError(f"{key} is not a {kind.__name__}")
    return value


def lines(question: Question, width: int, encoding: str) -> list[str]:
    """Return the lines that show a question on a screen of this encoding, each at most `width`
    columns (40 if less).

    What a device says of itself stands behind its label on every line that it takes, so that no
    text of a device begins a line of the screen and looks like a choice. (So its blanks may stay.)
    """
    width = max(width, WIDTH_MIN)
    said = ["-" * min(width - 1, RULE_MAX)]
    said += _wrapped(f"{question.asker} asks to {question.doing}", "", "    ", width, encoding)
    fields = (*question.fields, ("service", question.service), ("request", question.request))
    for label, text in fields:
        if text:
            start = f"  {label}".ljust(LABEL_WIDTH)
            said += _wrapped(text, start, " " * (LABEL_WIDTH - 2) + "| ", width, encoding)
    said.append(question.choosing)
    digits = len(str(len(question.candidates)))
    for number, vm in enumerate(question.candidates, 1):
        marked = "   <- default: Enter alone" if vm == question.default else ""
        start = f"  {number:{digits}}  "
        said += _wrapped(f"{vm}{marked}", start, " " * len(start), width, encoding)
    said.append(f"  {'n':>{digits}}  none: deny it")
    return said


def _wrapped(text: str, start: str, further: str, width: int, encoding: str) -> list[str]:
    """Return `text` in lines of less than `width` columns, so that the terminal does not wrap it.

    It is escaped before, because an escape takes more room than the letter.
    """
    said = [start]
    left = width - 1 - len(start)
    for char in escaped(text, TEXT_MAX, encoding):
        left -= _columns_at_most(char)
        if left < 0:
            said.append(further)
            left = width - 1 - len(further) - _columns_at_most(char)
        said[-1] += char
    return said


def _columns_at_most(char: str) -> int:
    """Return how many columns a terminal may take for it: many letters are wide in some terminals
    only, not every terminal draws an accent over its letter, and a mark of direction may stand
    beside it."""
    return 1 if char.isascii() else 2
