"""The prompter's connection to dom0's service, over which both sides call."""

from __future__ import annotations

import contextlib

from pedos_protocol.connection import VERSIONS, Connection
from pedos_protocol.events import NEED_DATA, Answer, Closed, ErrorAnswer, Hello, Request

from pedos_cli import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pedos_protocol.events import Event

REGISTER_S = 10.0
"""Seconds in which the service answers a registration, which it does from memory."""

SEND_S = 5.0
"""Seconds in which the service reads an answer: it reads all the time, or it hangs."""

_REGISTER_ID = 1  # of the first call from this side


def _register(call_id: int, params: dict[str, object]) -> Request:
    return Request(call_id, "prompter.register", params, int(REGISTER_S * 1000))


class Link:
    """A connection over which both sides call. Unreachable or RemoteProtocolError end it."""

    def __init__(self, path: str | None = None) -> None:
        """Connect and ask to be registered; the answer comes as an event. Unreachable if no service
        listens."""
        self._socket, self.path = client.open_socket(path)
        self._connection = Connection()
        self.is_older = False  # the service does not know how this registers
        self._socket.settimeout(SEND_S)
        try:
            hello = self._connection.send(Hello(VERSIONS, "qvm-prompt"))
            request = _register(_REGISTER_ID, {"calls": True})
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # If the service hangs up at once, what it sent before is read.
                self._socket.sendall(hello + self._connection.send(request))
        except OSError as error:
            self._socket.close()
            raise self._broken(error) from error
        except BaseException:
            self._socket.close()
            raise

    def register_as_before(self) -> None:
        """Ask again, of a service that is older and knows no questions about calls."""
        self.is_older = True
        self._write(self._connection.send(_register(_REGISTER_ID + 1, {})))

    def fileno(self) -> int:
        """The descriptor to poll for input."""
        return self._socket.fileno()

    def receive(self) -> list[Event]:
        """Return what has arrived, after poll reported input."""
        try:
            data = self._socket.recv(client.RECEIVE_SIZE)
        except OSError as error:
            raise self._broken(error) from error
        self._connection.receive_data(data)
        events: list[Event] = []
        while True:
            event = self._connection.next_event()
            if isinstance(event, Closed):
                raise client.Unreachable(self.path, "the service has closed the connection")
            if event is NEED_DATA:
                return events
            events.append(event)  # type: ignore[arg-type]

    def answer(self, call_id: int, target: str | None) -> None:
        """Answer a question: the chosen VM, or None for no."""
        verdict = "deny" if target is None else "allow"
        self._write(self._connection.send(Answer(call_id, {"verdict": verdict, "target": target})))

    def refuse(self, call_id: int, code: str, message: str) -> None:
        """Answer a call with an error."""
        self._write(self._connection.send(ErrorAnswer(call_id, code, message, {})))

    def close(self) -> None:
        """Hang up: the service passes open questions to another prompter."""
        self._socket.close()

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> client.Unreachable:
        why = error.strerror or "it takes and sends nothing"
        return client.Unreachable(self.path, f"the connection broke ({why.lower()})")
