"""What windows have in common when they call the service: answers of many pages, the VMs that
there are, and refusals in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pedos_cli.answers import MESSAGE_MAX, rule_text, take, take_maps
from pedos_cli.output import show
from pedos_protocol.names import natural_key

from pedos_widget.i18n import _

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pedos_cli.client import Unreachable
    from pedos_cli.pages import Pages
    from pedos_protocol.errors import CallError, ProtocolError


class Calls(Protocol):
    """Who can call the service: the controller."""

    async def call(
        self, method: str, params: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """The answer. Raises CallError or Unreachable."""
        ...


class Seen(Protocol):
    """What is known of the connection."""

    @property
    def connected(self) -> bool:
        """Whether the service can be called."""
        ...

    @property
    def status(self) -> str:
        """What is not well, in one line; "" if all is."""
        ...


class Watched(Calls, Protocol):
    """Who can call the service and tells of what changes: the controller."""

    @property
    def view(self) -> Seen:
        """What is known now."""
        ...

    def on_change(self, callback: Callable[[], None], /) -> Callable[[], object]:
        """Have `callback` called whenever something is different; until what is returned is
        called."""
        ...


async def everything(
    caller: Calls, pages: Pages, timeout_s: float
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """What `pages` caller for, over as many answers as it takes, and the last answer. Each may take
    `timeout_s`. Raises as `Calls.call`, or ProtocolError."""
    try:
        asked = next(pages)
        while True:
            asked = pages.send(await caller.call(asked[0], asked[1], timeout_s=timeout_s))
    except StopIteration as end:
        found: tuple[list[dict[str, object]], dict[str, object]] = end.value
        return found


def vm_names(answer: Mapping[str, object]) -> list[str]:
    """The VMs of an answer to `vm.list`, in natural order and without dom0, which gets no devices.
    ProtocolError if it is none."""
    names = {take(each, "name", str) for each in take_maps(answer, "vms")}
    return sorted(names - {"dom0"}, key=natural_key)


def reason(error: CallError) -> str:
    """Why the service refuses, in its words; what it says of a command to type is a window here."""
    window = _("(“Policy...” of the Devices widget says more)")
    return error.message.replace("(qvm-policy status)", window)


def reason_alone(error: CallError, device: str, vm: str) -> str:
    """The same where SOURCE:ID `device` and `vm` are shown beside it, without what names them. What
    a device says of itself comes before the end of that."""
    words = reason(error)
    about, named, why = words.rpartition(f" -> {vm}: ")
    return why if named and about.startswith(device) else words


def refusal(error: CallError) -> str:
    """What was refused and why, by which rule, and what to try: one line of plain text."""
    words = show(reason(error), MESSAGE_MAX)
    if error.code == "denied" and "rule" in error.data:
        rule = " ".join(rule_text(error.data).split())  # without the space between columns
        words = _("{what} (rule: {rule})").format(what=words, rule=rule)
    if error.data.get("hint"):
        hint = show(error.data["hint"])
        words = _("{what} (try: {hint})").format(what=words, hint=hint)
    return words


def not_reached(error: Unreachable) -> str:
    """Why there is no answer."""
    return _("The service does not answer: {why}").format(why=show(error.why))


def not_understood(error: ProtocolError) -> str:
    """Why an answer is none."""
    return _("The service's answer cannot be understood: {why}").format(why=show(error))
