"""What is to be attached by itself, and what came of it so far. No decisions here: auto_attach.py
has those."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.assignment import Assignment
    from pedos_dom0.tables.registry import DeviceKey


@frozen
class Wish:
    """`assignment` decides where the device goes, and nothing stands against it: `identity` is its
    whole one, `since` and `instance` tell it from a later one, `link` is its VM's present agent."""

    key: DeviceKey
    assignment: Assignment
    identity: str
    since: int | None
    instance: str
    link: AgentLink


@attrs.define
class Try:
    """What came of a wish. `why`: it was not fulfilled, or not for long."""

    wish: Wish
    running: bool = False
    over: bool = False
    why: str | None = None
    asking: bool = False
    unasked: bool = False
    denied: bool = False  # by policy, and not by a person
    unstored: bool = False  # the last failure was one of the store
    # What happened while it was tried, after which a failure of that kind does not count.
    meanwhile: list[Callable[[Try], bool]] = attrs.field(factory=list)
    attached: int = 0
    attached_at: float = 0.0
    # Set when the wish is void: a question about it is withdrawn.
    gone: trio.Event = attrs.field(factory=trio.Event)
    waits: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def renew(self, of_kind: Callable[[Try], bool]) -> None:
        """A failure of that kind is no reason any more to leave the device alone; nor is one that
        this try comes to, as it began before."""
        if self.running:
            self.meanwhile = [*(each for each in self.meanwhile if each is not of_kind), of_kind]
        elif of_kind(self):
            self.over = self.unasked = self.denied = False

    def end(self) -> None:
        """It has come to an end."""
        self.running = False
        meanwhile, self.meanwhile = self.meanwhile, []
        for of_kind in meanwhile:
            self.renew(of_kind)

    def give_up(self) -> None:
        """The wish is void."""
        self.gone.set()
        self.waits.cancel()

    @contextmanager
    def waiting(self) -> Iterator[trio.CancelScope]:
        """Around a wait, which ends when the wish is void: a source could cause any number."""
        self.waits = trio.CancelScope()
        if self.gone.is_set():
            self.waits.cancel()
        with self.waits as scope:
            yield scope


# Kinds of failures, for Try.renew.


def was_unasked(tried: Try) -> bool:
    return tried.unasked


def was_denied(tried: Try) -> bool:
    return tried.denied


def was_any(_tried: Try) -> bool:
    return True
