"""The words of a question, in the person's language.

`prompt_question` has them in English, for terminals; what it says is a fixed set, and what a device
says of itself is no word of anybody's language. Unknown words stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.device_classes import class_named
from pedos_protocol.names import escaped_text

from pedos_widget.i18n import _, ngettext

if TYPE_CHECKING:
    from pedos_cli.prompt_question import Question

_LABELS = {
    "device": _("Device"),
    "identity": _("Identity"),
    "has": _("Has"),
    "says it is": _("Says it is"),
    "size": _("Size"),
    "access": _("Access"),
    "argument": _("Argument"),
    "service": _("Service"),
    "request": _("Request"),
}

_VALUES = {
    "(none)": _("(none)"),
    "(nothing)": _("(nothing)"),
    "read-only": _("read-only"),
    "read and write": _("read and write"),
}

_CHOOSING = {
    "which VM gets it?": _("Which VM gets it?"),
    "which VM loses it?": _("Which VM loses it?"),
    "for which VM?": _("For which VM?"),
    "in which VM?": _("In which VM?"),
}

_CLASSES = {
    "block": _("block device"),
    "usb": _("USB device"),
    "pci": _("PCI device"),
    "mic": _("microphone"),
}

_ASKS = {
    "attach": _("{vm} asks to attach a device"),
    "detach": _("{vm} asks to detach a device"),
    "assign": _("{vm} asks to have a device attached at every start"),
    "list": _("{vm} asks to see a device"),
    "call": _("{vm} asks to call a service"),
}

_WHY_WITHDRAWN = {
    "the command that asked has ended": _("the command that asked has ended"),
    "another prompter has the answer": _("it was answered elsewhere"),
    "the caller has gone": _("whoever asked does not wait any more"),
    "no answer came in time": _("no answer came in time"),
    "the connection has ended": _("the connection to dom0's service has ended"),
}

WHOLE = ("argument", "service")
"""Labels of texts that are never cut: what is called must not look like something else."""


def heading(question: Question) -> str:
    """Who asks for what."""
    if question.mode is not None:
        said = _("An assignment in mode “{mode}” asks to attach a device")
        return said.format(mode=question.mode)
    said = _ASKS.get(question.verb, _("{vm} asks to use a device in another way"))
    return said.format(vm=question.source)


def fields(question: Question) -> list[tuple[str, str, bool]]:
    """Labels, texts (harmless, one line each), and whether a text must be shown whole."""
    own = (("service", question.service), ("request", question.request))
    said = [
        (_LABELS.get(label, label), escaped_text(_VALUES.get(text, text)), label in WHOLE)
        for label, text in (*question.fields, *own)
        if text
    ]
    if question.device_class:
        described = class_named(question.device_class)
        english = described.one if described else question.device_class
        said.insert(0, (_("Kind"), _CLASSES.get(question.device_class, english), False))
    return said


def choosing(question: Question) -> str:
    """The heading of the VMs to choose from."""
    return _CHOOSING.get(question.choosing, question.choosing)


def choice(question: Question, vm: str) -> str:
    """A VM to choose."""
    return _("{vm} (the rule's default)").format(vm=vm) if vm == question.default else vm


def time_left(seconds: int) -> str:
    """How long the question can be answered."""
    return ngettext("{n} second left", "{n} seconds left", seconds).format(n=seconds)


def others(count: int) -> str:
    """How many questions wait behind this one."""
    if not count:
        return ""
    return ngettext("{n} more question waits", "{n} more questions wait", count).format(n=count)


def state(*, is_active: bool, is_armed: bool, is_chosen: bool) -> str:
    """Why it cannot be allowed at this moment, or "" if it can."""
    if not is_active:
        return _("Click here to answer: keys still go to another window.")
    if not is_armed:
        return _("Read first: it can be allowed in a moment.")
    return "" if is_chosen else _("Choose a VM to allow it.")


def withdrawn(why: str) -> str:
    """Why the question that is shown need not be answered any more."""
    return _("Withdrawn: {why}. Nothing is to be done.").format(why=_why_withdrawn(why))


def withdrawn_before(why: str) -> str:
    """Why the question that was shown before this one has gone."""
    said = _("This is another question. The one before was withdrawn: {why}.")
    return said.format(why=_why_withdrawn(why))


def _why_withdrawn(why: str) -> str:
    return _WHY_WITHDRAWN.get(why, escaped_text(why))
