"""The line in the audit log for every operation: who asked, and how it ended."""

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
    """The content of the line. The operation adds to it as it proceeds; an error does so by itself.

    `changed`: the operation changed something. A VM can cause operations without a change at will.
    """

    fields: dict[str, Any]
    outcome: str = "failed"
    changed: bool = False


@contextmanager
def recorded(
    state: State, event: str, caller: Caller, request: str, **fields: Any
) -> Iterator[Ending]:
    """Records the operation within it with one line, however the operation ends. A write that the
    store refuses is an error like any other.

    For a device, the line has the truth (`reason`) if the caller is told less.
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
            of=caller.audited,
            throttled=caller.kind.throttled and not ending.changed,
            request=request,
            caller=caller.audited,
            **ending.fields,
            outcome=ending.outcome,
            **hidden,
            seconds=round(trio.current_time() - began, 3),
        )
