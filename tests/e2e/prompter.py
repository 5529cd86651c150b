"""A prompter for tests: a client of dom0's socket, in a thread, with prepared answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import trio
from pedos_host.unix import connect_unix
from pedos_vchan.peer import Peer, open_peer

from .system import PATIENCE_S

Params = dict[str, Any]


class Prompter:
    """Registered with the service for as long as the block lasts. `asked` is every question.

    `answer` returns the answer to a question; dom0 waits while it runs.
    """

    def __init__(self, socket: str, answer: Callable[[Params], Params]) -> None:
        self.asked: list[Params] = []
        self._socket = socket
        self._answer = answer
        self._ready: queue.Queue[BaseException | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._token: trio.lowlevel.TrioToken
        self._end: trio.Event

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._ready.put(error)

    async def _serve(self) -> None:
        self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
        stream = await connect_unix(self._socket)
        asked = {"prompt.ask": self._ask, "prompt.call": self._ask}
        handlers = {**asked, "prompt.cancel": self._cancel}
        async with open_peer(stream, program="test-prompter", handlers=handlers) as peer:
            await peer.call("prompter.register", {"calls": True}, timeout=PATIENCE_S)
            self._ready.put(None)
            await self._end.wait()

    async def _ask(self, _peer: Peer, params: Params) -> Params:
        self.asked.append(params)
        return await trio.to_thread.run_sync(self._answer, params)

    async def _cancel(self, _peer: Peer, _params: Params) -> None:
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Prompter:
        self._thread.start()
        error = self._ready.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
