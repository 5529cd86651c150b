"""The one way to change a policy file, which checks the whole policy as it would be."""

from __future__ import annotations

import os

from pedos_cli import policy_engine, policy_files, policy_live
from pedos_cli.policy_engine import BrokenPolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_dom0.policy.model import PolicyError

    from pedos_cli.run import Session


def check(
    where: Sequence[str], name: str, data: bytes | None
) -> tuple[tuple[PolicyError, ...], bool]:
    """Check the policy as it would be with `data` in place of the file `name`.

    Raises BrokenPolicyError if it would be broken. A broken policy can be repaired file by file: a
    change that removes errors and adds none is accepted. Returns the remaining errors, and whether
    the policy reads the file at all: one that is named by a path is read only if another includes
    it.
    """
    loaded = policy_engine.read(where, {name: data})
    after, is_read = loaded.errors, _reads(loaded.files, name)
    if not after:
        return (), is_read
    before = set(policy_engine.read(where).errors)
    fewer = len(after) < len(before) and all(error in before for error in after)
    if not fewer or any(error.file == name for error in after):
        raise BrokenPolicyError(after)
    return after, is_read


def _reads(files: Sequence[str], name: str) -> bool:
    return any(os.path.normpath(each) == os.path.normpath(name) for each in files)


def _tell_doubts(session: Session, where: Sequence[str], name: str) -> None:
    """Report what `check` says of the rules in the written file."""
    found = policy_engine.Findings(policy_engine.read(where).rules)
    said = [(f"warning: {each}", each.file) for each in (*found.errors, *found.warnings)]
    said += [(f"note: {each}", each.file) for each in found.notes]
    for line, file in said:
        if os.path.normpath(file) == os.path.normpath(name):
            session.note(line)


def apply(
    session: Session, where: Sequence[str], name: str, data: bytes | None, expected: str
) -> dict[str, object]:
    """Write or remove the file `name`, and return what to report about it.

    Raises BrokenPolicyError, and CallError like `policy_files.change`; then nothing is changed.
    """
    left: tuple[PolicyError, ...] = ()
    is_read = True

    def whole_policy() -> None:
        nonlocal left, is_read
        left, is_read = check(where, name, data)

    folder = where[-1]
    before = policy_live.status(session)
    policy_live.wait_until_distinct(before)
    policy_files.change(folder, name, data, expected, whole_policy)
    for line in policy_engine.error_lines(left):
        session.note(line)
    if left:
        session.note("warning: the policy still has these errors, so nothing of it takes effect")
    if data is not None and not left and not is_read:
        session.note(f"warning: no file includes {name}: nothing in it was checked, or has effect")
    if data is not None and not left:
        _tell_doubts(session, where, name)
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
