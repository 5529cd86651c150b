"""A fake service: a real Unix socket, real frames, and answers that a test sets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_host.plain_unix import short_path
from pedos_protocol.connection import Connection
from pedos_protocol.errors import CallError
from pedos_protocol.events import NEED_DATA, Answer, Closed, ErrorAnswer, Hello, Notice, Request

Reply = dict[str, Any] | CallError | Callable[[dict[str, Any]], dict[str, Any] | CallError]

GOOD_POLICY = {"ok": True, "loaded_at": "2025-01-02T03:04:05+00:00", "rules": 3, "errors": []}


class FakeService:
    """Answers each method with what `replies` says; records requests in `calls`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, Reply] = {"service.status": {"policy": GOOD_POLICY}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.garbage: bytes | None = None
        self.leaves = False  # when it gets a request
        self.before_answer: Callable[[Callable[[str, dict[str, Any]], None]], None] | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        with short_path(path) as short:
            self._socket.bind(short)
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def asked(self, method: str) -> dict[str, Any]:
        """The parameters of the one call of `method`."""
        (params,) = (params for name, params in self.calls if name == method)
        return params

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._socket.accept()
            except OSError:
                return
            with stream:
                try:
                    self._serve(stream)
                except OSError:  # the client went away first
                    continue

    def _serve(self, stream: socket.socket) -> None:
        stream.settimeout(5)
        connection = Connection()
        stream.sendall(connection.send(Hello((1, 1), "fake 0.1")))
        while True:
            event = connection.next_event()
            if event is NEED_DATA:
                connection.receive_data(stream.recv(65536))
            elif isinstance(event, Closed):
                return
            elif isinstance(event, Request):
                self.calls.append((event.method, event.params))
                if self.leaves:
                    return
                if self.garbage is not None:
                    stream.sendall(self.garbage)
                    return
                if self.before_answer is not None:
                    self.before_answer(
                        lambda method, params: stream.sendall(
                            connection.send(Notice(method, params))
                        )
                    )
                stream.sendall(connection.send(self._answer(event)))

    def _answer(self, request: Request) -> Answer | ErrorAnswer:
        reply = self.replies.get(
            request.method, CallError("unknown_method", f"no method {request.method}")
        )
        if callable(reply):
            reply = reply(request.params)
        if isinstance(reply, CallError):
            return ErrorAnswer(request.id, reply.code, reply.message, reply.data)
        return Answer(request.id, reply)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    fake = FakeService(tmp_path / "pedos.sock")
    monkeypatch.setenv("PEDOS_SOCKET", str(fake.path))
    monkeypatch.delenv("PEDOS_VM", raising=False)
    yield fake
    fake.close()


@pytest.fixture
def no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nobody.sock"
    monkeypatch.setenv("PEDOS_SOCKET", str(path))
    monkeypatch.delenv("PEDOS_VM", raising=False)
    return path


@pytest.fixture
def listed() -> Callable[..., dict[str, Any]]:
    """Makes a device as the service lists it."""

    def make(name: str, **fields: Any) -> dict[str, Any]:
        backend, _, device = name.partition(":")
        return {
            "device_class": "block",
            "backend": backend,
            "device": device,
            "identity": "",
            "description": "a disk",
            "size": 67108864,
            "parent": None,
            "read_only": False,
            "busy": None,
            "present": True,
            "attachments": [],
            "assignments": [],
            **fields,
        }

    return make
