"""The running service's view of a change: asked before, and watched afterwards."""

from __future__ import annotations

import os
import time

from pedos_protocol.errors import CallError, ProtocolError

from pedos_cli import output
from pedos_cli.answers import policy_warning, take_maps
from pedos_cli.output import show
from pedos_cli.place import inside_vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_cli.run import Session

TIMEOUT_S = 5.0
"""Seconds for one question about the policy: the service answers from memory."""

PATIENCE_S = 3.0
"""Seconds from a write until the service must have read it: it waits for a burst of changes to end,
and then reads all files."""

PAUSE_S = 0.05
"""Seconds between two looks."""


def status(session: Session) -> dict[str, object] | None:
    """Return the service's status of its policy; None if no service runs."""
    if inside_vm():
        return None
    from pedos_cli.client import Unreachable  # noqa: PLC0415

    try:
        policy = session.call("service.status", {}, TIMEOUT_S).get("policy")
    except (CallError, ProtocolError, Unreachable):
        return None
    return policy if isinstance(policy, dict) else None


def wait_until_distinct(before: Mapping[str, object] | None) -> None:
    """Wait until a policy that is read from now on has a later time than the one in force.

    The service's time has a resolution of one second: two reads within it look like one. That
    happens to scripts; a person is not that fast.
    """
    if before is None:
        return
    from datetime import datetime  # noqa: PLC0415

    try:
        loaded_at = datetime.fromisoformat(str(before.get("loaded_at"))).timestamp()
    except (ValueError, OverflowError):
        return
    left = int(loaded_at) + 1 - time.time()
    if 0 < left <= 1:
        time.sleep(left)


def outcome(
    session: Session, folders: Sequence[str], before: Mapping[str, object] | None
) -> dict[str, object]:
    """Return whether the service took a change: `{"taken": True | False | None, "why": TEXT}`.

    `before` is its status before the change, None if no service ran. The answer None means that it
    is not known, or that no service runs that could take it.
    """
    if before is None:
        return {"taken": None, "why": "no service is running: it is read when one starts"}
    if not _reads(before, folders):
        return {"taken": None, "why": "the running service reads other policy folders"}
    until = time.monotonic() + PATIENCE_S
    while True:
        now = status(session)
        if now is None:
            return {"taken": None, "why": "the service went away: it is read when it is back"}
        if _state(now) != _state(before):
            break
        if time.monotonic() >= until:
            if now.get("ok"):
                why = f"the service saw no change: its policy is that of {now.get('loaded_at')}"
                return {"taken": None, "why": why}
            break
        time.sleep(PAUSE_S)
    # A refused policy leaves the time unchanged. The facts in vms.d may have an error as well.
    if now.get("ok") or now.get("loaded_at") != before.get("loaded_at"):
        why = f"in force since {now.get('loaded_at')}"
        rest = policy_warning(now)
        return {"taken": True, "why": f"{why}; but {rest}" if rest else why}
    return {"taken": False, "why": policy_warning(now) or "the service has errors"}


def tell(session: Session, result: Mapping[str, object]) -> None:
    """Describe `outcome` to people."""
    why = show(result["why"])
    if result["taken"] is True:
        session.say(f"  the running service took it: {why}")
    elif result["taken"] is False:
        session.note(f"warning: the running service did not take it: {why}")
    else:
        session.say(f"  {why}")


def put_result(session: Session, said: str, result: dict[str, object]) -> None:
    """Print the result of a change, for people or as JSON; `result["service"]` is the outcome."""
    if session.args.json:
        session.did(said, lambda: output.put_json(result))
        return
    session.say(said)
    service = result.get("service")
    if isinstance(service, dict):
        tell(session, service)


def _reads(policy: Mapping[str, object], folders: Sequence[str]) -> bool:
    """Say whether the service reads the folder that was written to; yes if it does not tell."""
    theirs = policy.get("folders")
    if not isinstance(theirs, list) or not theirs:
        return True
    ours = os.path.realpath(folders[-1])
    return any(isinstance(each, str) and os.path.realpath(each) == ours for each in theirs)


def _state(policy: Mapping[str, object]) -> tuple[object, ...]:
    errors = [tuple(sorted(map(str, each.items()))) for each in take_maps(policy, "errors")]
    return (policy.get("ok"), policy.get("loaded_at"), policy.get("rules"), errors)
