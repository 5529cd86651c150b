"""The line of the audit log that every operation leaves: who asked, and how it ended."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio
from pedos_protocol.errors import CallError

from pedos_dom0 import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State


@attrs.define
class Ending:
    """What the line says. The operation notes it as it comes to know it; an error does by itself.

    `changed`: something is other than it was. What changes nothing, a VM can cause at will.
    """

    fields: dict[str, Any]
    outcome: str = "failed"
    changed: bool = False


@contextmanager
def recorded(
    state: State, event: str, caller: Caller, request: str, **fields: Any
) -> Iterator[Ending]:
    """Within is one operation, whose line is written however it ends. A write that the store
    refuses is an error like any other.

    Where a device is concerned, the line has the truth (`reason`) if the caller is told less.
    """
    began = trio.current_time()
    ending = Ending(fields)
    hidden: dict[str, str | None] = {"reason": None} if "device" in fields else {}
    try:
        with errors.store_failures():
            yield ending
    except CallError as error:
        ending.outcome, ending.changed = f"{error.code}: {error.message}", False
        if hidden:
            hidden["reason"] = errors.hidden_truth(error)
        raise
    finally:
        state.audit_throttle.write(
            event,
            of=caller.name,
            throttled=caller.kind.throttled and not ending.changed,
            request=request,
            caller=caller.name,
            **ending.fields,
            outcome=ending.outcome,
            **hidden,
            seconds=round(trio.current_time() - began, 3),
        )
