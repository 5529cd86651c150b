"""The widget as a prompter: a connection of its own, on which the service asks.

It is there for as long as questions can be shown. The protocol has no other way to be a prompter no
longer than to hang up, and the service then passes open questions to another prompter.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import trio
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.messages import parse_params

from .link import Link

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from pedos_vchan.peer import Peer

logger = logging.getLogger(__name__)

REGISTER_S = 10.0
"""Seconds in which the service answers a registration, which it does from memory."""


class Prompter(Protocol):
    """Who asks the person."""

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to `prompt.ask` or `prompt.call`, as the map of a PromptAnswer. CallError if
        there is none. Cancelled if it is not wanted any more."""

    def cancel(self, request: str, reason: str) -> None:
        """The question of this request is withdrawn."""

    def gone(self) -> None:
        """The connection has ended: all questions are withdrawn."""


class Prompting:
    """Keeps a connection for the prompter that there is. `refused` is called with why the service
    takes no prompter more, and with "" once it does."""

    def __init__(self, path: str | None, program: str, refused: Callable[[str], None]) -> None:
        self._path = path
        self._program = program
        self._refused = refused
        self._prompter: Prompter | None = None
        self._registered: _Registered | None = None
        self._is_another = trio.Event()

    def wanted(self) -> None:
        """Somebody looks: the next attempt is now, if there is no connection."""
        if self._registered is not None:
            self._registered.wanted()

    def ask_by(self, prompter: Prompter | None) -> None:
        """From now on, questions go to `prompter`; None: to other programs. Within trio's run."""
        if prompter is not self._prompter:
            self._prompter = prompter
            self._is_another.set()

    async def run(self) -> NoReturn:
        """Connects and registers, again and again, until cancelled."""
        while True:
            self._is_another = trio.Event()
            self._registered = None
            async with trio.open_nursery() as nursery:
                if self._prompter is None:
                    self._refused("")  # nobody is to be asked here
                else:
                    self._registered = _Registered(
                        self._path, self._program, self._prompter, self._refused
                    )
                    nursery.start_soon(self._registered.run)
                await self._is_another.wait()
                nursery.cancel_scope.cancel()


class _Registered:
    """One prompter's connection."""

    def __init__(
        self,
        path: str | None,
        program: str,
        prompter: Prompter,
        refused: Callable[[str], None],
    ) -> None:
        self._prompter = prompter
        self._refused = refused
        self._is_registered = False
        self._link = Link(
            path,
            program,
            self._register,
            self._lost,
            handlers={"prompt.ask": self._ask, "prompt.call": self._call},
            notices={"prompt.cancel": self._cancel},
        )

    def wanted(self) -> None:
        self._link.wanted()

    async def run(self) -> None:
        try:
            await self._link.run()
        finally:
            self._lost("")

    async def _register(self, peer: Peer) -> None:
        try:
            await peer.call("prompter.register", {"calls": True}, timeout=REGISTER_S)
        except CallError as error:
            if error.code == "quota":
                self._refused(error.message)
            raise
        self._is_registered = True
        self._refused("")
        self._link.works()
        logger.info("the policy's questions are asked here")
        await trio.sleep_forever()

    def _lost(self, _why: str) -> None:
        if self._is_registered:
            self._is_registered = False
            self._prompter.gone()

    async def _ask(self, _peer: Peer, untrusted_params: dict[str, Any]) -> dict[str, Any]:
        return await self._prompter.ask("prompt.ask", untrusted_params)

    async def _call(self, _peer: Peer, untrusted_params: dict[str, Any]) -> dict[str, Any]:
        return await self._prompter.ask("prompt.call", untrusted_params)

    async def _cancel(self, _peer: Peer, untrusted_params: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        try:
            told = parse_params("prompt.cancel", untrusted_params)
        except ProtocolError as error:
            logger.warning("a withdrawal of a question cannot be read: %s", error)
            return
        self._prompter.cancel(told.request, told.reason)
