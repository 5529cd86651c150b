"""The words of the settings window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_cli.answers import options_text
from pedos_cli.assign_words import WHEN
from pedos_cli.output import NOTHING, show
from pedos_protocol.device_classes import class_named

from pedos_widget.i18n import _, ngettext
from pedos_widget.settings.model import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_protocol.device_classes import Option

    from pedos_widget.settings.model import Row, Settings

MATCHES = {
    "both": _("This device at this port"),
    "device": _("This device at any port"),
    "port": _("Any device at this port"),
}
"""What of a device counts."""

HEADER = (_("Device"), _("What counts"), _("When"), _("Options"), _("State"))


def mode_text(mode: str, vm: str) -> str:
    """`required: work does not start without it`"""
    return f"{mode}: {WHEN[mode].format(vm=vm)}" if mode in WHEN else mode


def modes_of(device_class: str, now: str) -> list[str]:
    """The modes that the service takes for a class, and the one that there is."""
    described = class_named(device_class)
    modes = list(WHEN) if described is None or described.live else ["required"]
    return modes if now in modes else [*modes, now]


def options_of(device_class: str, given: Sequence[str]) -> list[tuple[str, Option | None]]:
    """The options of a class, and those that are given and that this version does not know."""
    described = class_named(device_class)
    known = {} if described is None else {each.name: each for each in described.options}
    return [*known.items(), *((name, None) for name in given if name not in known)]


def not_set(option: Option | None) -> str:
    """The entry for an option that is not given."""
    if option is None or option.default is None:
        return _("not set")
    return _("not set ({default})").format(default=option.default)


def cells(settings: Settings, row: Row) -> tuple[str, ...]:
    """A row under HEADER, harmless."""
    wish = row.shown
    described = class_named(wish.device_class)
    kind = wish.device_class if described is None else described.one
    words = (wish.name, settings.description(wish), kind)
    return (
        ", ".join(show(each) for each in words if each),
        MATCHES[wish.match],
        show(wish.mode),
        show(options_text(dict(wish.options))) or NOTHING,
        state_text(row),
    )


def state_text(row: Row) -> str:
    """One or two words: nothing of a row is told by its look alone."""
    if row.state is State.SAVING:
        return _("saving")
    if row.state is State.UNKNOWN:
        return _("perhaps saved")
    if row.state is State.FAILED:
        return _("not removed") if row.wanted is None else _("not saved: failed")
    if row.wanted is None:
        return _("to be removed")
    if row.stored is None:
        return _("new, not saved")
    return _("saved") if row.is_clean else _("changed, not saved")


def heading(settings: Settings) -> str:
    """Whose devices, and whether that VM runs."""
    if not settings.is_loaded:
        return _("Devices of {vm}").format(vm=settings.vm)
    if settings.runs is None:
        return _("Devices of {vm}, which does not exist any more").format(vm=settings.vm)
    if settings.runs:
        return _("Devices of {vm}, which runs").format(vm=settings.vm)
    return _("Devices of {vm}, which is halted").format(vm=settings.vm)


def after_saving(settings: Settings) -> str:
    """What came of saving."""
    count = sum(not row.is_clean for row in settings.rows)
    if not count:
        return _("Everything is saved.")
    text = ngettext("{n} change is not saved.", "{n} changes are not saved.", count)
    return text.format(n=count)
