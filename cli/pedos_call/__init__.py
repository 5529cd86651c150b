"""Calls of services between VMs for programs in Python: `call` one, or `serve` them.

    import pedos_call
    done = pedos_call.call("vault", "work.Sign+letter", input=text, check=True)
    signature = done.stdout

Blocking, and without anything but the standard library. What a call is, and who may make which:
docs/services.md. Programs in other languages run qvm-call.
"""

from pedos_call.calling import (
    OUTPUT_MAX,
    PIPE,
    CallFailedError,
    CompletedCall,
    OutputTooLongError,
    call,
)
from pedos_call.connection import UnreachableError
from pedos_call.serving import Served, serve

__all__ = [
    "OUTPUT_MAX",
    "PIPE",
    "CallFailedError",
    "CompletedCall",
    "OutputTooLongError",
    "Served",
    "UnreachableError",
    "call",
    "serve",
]
