"""What the system refused, in words: `[Errno 24]` means nothing to the reader of a log."""

from __future__ import annotations

from pedos_protocol.names import escaped_text


def what_is_wrong(error: BaseException, where: str = "") -> str:
    """`FILE: what is wrong` in one printable line; `where` is said if the error names no file. An
    error that is not the system's has words of its own."""
    if not isinstance(error, OSError):
        return str(error)
    file = error.filename if isinstance(error.filename, str) else where
    return escaped_text((f"{file}: " if file else "") + (error.strerror or str(error)))
