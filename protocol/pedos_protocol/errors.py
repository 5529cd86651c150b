"""The errors of the protocol, and the error answers that it carries.

A protocol error is one of two and nothing else (the rule is h11's): this side is at fault, or the
other side is. A `CallError` is neither: it is a well-formed refusal.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The codes of an error answer, and their meanings. Another code is a protocol error: a client maps
#: each to an exit status, so an unknown one would have no meaning.
CODES = {
    "denied": "policy forbids it",
    "not_found": "no such VM, device, class or attachment, or its VM does not run",
    "busy": "the device is held by another attachment",
    "failed": "it was tried and did not work",
    "usage": "the request is malformed",
    "unavailable": "the one who would have to do it cannot be reached",
    "unknown_method": "the method is not in the table of the one who was asked",
    "timeout": "the deadline passed before there was an answer",
    "quota": "the caller has used up what it may use",
}

#: The exit status of a command whose request ended with the code.
EXIT_STATUS = {
    "denied": 3,
    "not_found": 4,
    "busy": 6,
    "failed": 1,
    "usage": 2,
    "unavailable": 5,
    "unknown_method": 1,
    "timeout": 1,
    "quota": 1,
}


class ProtocolError(Exception):
    """The protocol was broken; raised only as one of the two below."""


class LocalProtocolError(ProtocolError):
    """This program tried to send what the protocol forbids. Nothing was sent, nothing changed."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol forbids. The connection is of no further use."""


class CallError(Exception):
    """An error answer.

    `code` is one of `CODES`; `message` is one sentence that starts in lower case and does not
    name the program; `data` holds what a client shows or acts on (request, rule, hint...).
    """

    def __init__(self, code: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        if code not in CODES:
            raise LocalProtocolError(f"{code!r} is not an error code: see errors.CODES")
        super().__init__(message)
        self.code = code
        self.message = message
        self.data: dict[str, Any] = dict(data) if data else {}

    def __repr__(self) -> str:
        return f"CallError({self.code!r}, {self.message!r}, {self.data!r})"
