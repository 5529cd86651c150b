"""A program that watches, as the command line does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pedos_cli.device_watch import TIMEOUT_S
from pedos_cli.watch_model import Model

if TYPE_CHECKING:
    from tests.dom0.fakes import World


# More than any test here has; each device in an answer of its own is the most.
ANSWERS_MAX = 250


class Watcher:
    """A program of dom0's user, or of a VM, that watches."""

    def __init__(self, world: World, vm: str | None = None, of: str | None = None) -> None:
        self.model = Model()
        self.of = of
        self.patience_s = TIMEOUT_S
        self._world = world
        self._vm = vm

    async def ask(self) -> dict[str, Any]:
        question = self.model.question(self.of)
        if self._vm is None:
            ask = self._world.client.call
        else:
            ask = self._world.driver.agents[self._vm].ask
        return await ask("watch.next", timeout_s=self.patience_s, **question)

    async def next(self) -> list[dict[str, Any]]:
        """The events of one answer."""
        return self.model.take(await self.ask())

    async def all(self) -> list[dict[str, Any]]:
        """The events up to an answer that has none."""
        events: list[dict[str, Any]] = []
        for _ in range(ANSWERS_MAX):
            answer = await self.ask()
            events += self.model.take(answer)
            if not (answer["devices"] or answer["vms"]) and answer["complete"]:
                return events
        raise AssertionError("the answers have no end")


def told(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What happened to what; of VMs, how they changed."""
    found = []
    for event in events:
        if "device" in event:
            device = event["device"]
            found.append((event["event"], f"{device['backend']}:{device['device']}"))
        elif "vm" in event:
            for what in event.get("changes", [event["event"]]):
                found.append((what, event["vm"]["name"]))
        else:
            found.append((event["event"], ""))
    return found
