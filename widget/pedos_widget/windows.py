"""The windows that the menu opens: one of each kind and VM, kept for as long as it is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pedos_widget.policy_window.window import PolicyWindow
from pedos_widget.settings.window import SettingsWindow

if TYPE_CHECKING:
    from pedos_widget.calls import Watched
    from pedos_widget.tasks import StartSoon

    Window = SettingsWindow | PolicyWindow


class Windows:
    """Opens windows, and brings one to the front that is open already: there are at most as many as
    VMs, and a person has opened each."""

    def __init__(self, controller: Watched, start_soon: StartSoon) -> None:
        self._controller = controller
        self._start_soon = start_soon
        self._open: dict[str, Window] = {}

    def settings(self, vm: str) -> None:
        """The settings of a VM."""
        self._show(f"settings {vm}", lambda: SettingsWindow(self._controller, vm, self._start_soon))

    def policy(self) -> None:
        """What the policy decides."""
        self._show("policy", lambda: PolicyWindow(self._controller, self._start_soon))

    def _show(self, name: str, make: Callable[[], Window]) -> None:
        window = self._open.get(name)
        if window is None:
            window = self._open[name] = make()
            window.closed.connect(lambda: self._open.pop(name, None))
        window.show()
        window.raise_()
        window.activateWindow()
