"""The one way in which a policy file is changed: the whole policy is checked as it would be."""

from __future__ import annotations

import os

from pedos_cli import policy_engine, policy_files, policy_live
from pedos_cli.policy_engine import BrokenPolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_dom0.policy.model import PolicyError

    from pedos_cli.run import Session


def check(where: Sequence[str], name: str, data: bytes | None) -> tuple[PolicyError, ...]:
    """Check the policy as it would be with `data` in the place of the file `name`.

    Raises BrokenPolicyError if it would be broken. A policy that is broken already can be mended
    file by file: a change that takes errors away and adds none is let through, and the errors that
    are left are returned.
    """
    after = policy_engine.read(where, {name: data}).errors
    if not after:
        return ()
    before = set(policy_engine.read(where).errors)
    fewer = len(after) < len(before) and all(error in before for error in after)
    if not fewer or any(error.file == name for error in after):
        raise BrokenPolicyError(after)
    return after


def apply(
    session: Session, where: Sequence[str], name: str, data: bytes | None, expected: str
) -> dict[str, object]:
    """Write or remove the file `name`, and return what there is to tell of it.

    Raises BrokenPolicyError, and CallError as `policy_files.change` does; then nothing is changed.
    """
    left: tuple[PolicyError, ...] = ()

    def whole_policy() -> None:
        nonlocal left
        left = check(where, name, data)

    folder = where[-1]
    before = policy_live.status(session)
    policy_live.wait_until_distinct(before)
    policy_files.change(folder, name, data, expected, whole_policy)
    for line in policy_engine.error_lines(left):
        session.note(line)
    if left:
        session.note("warning: the policy still has these errors, so nothing of it takes effect")
    counts = policy_files.find(where, name)
    if data is not None and counts is not None and counts != os.path.join(folder, name):
        session.note(f"warning: {counts} has the same name and counts instead")
    return {
        "name": name,
        "folder": folder,
        "sha256": None if data is None else policy_files.digest(data),
        "changed": True,
        "errors": policy_engine.errors_json(left),
        "service": policy_live.outcome(session, where, before),
    }
