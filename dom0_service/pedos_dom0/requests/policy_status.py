"""The policy's status in answers: what is in force, and the errors of the files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.fields import ERRORS_MAX
from pedos_protocol.messages import PolicyErrorInfo

from pedos_dom0.requests.fitting import ENVELOPE_MAX, bounded_text, fitting, fitting_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_protocol.messages import PolicyStatus

    from pedos_dom0.state import State


def policy_status(state: State) -> PolicyStatus:
    """The policy's status, with the facts that its rules use."""
    status = state.policy.status()
    if not state.facts.known:
        # Without them no rules are used.
        status = attrs.evolve(status, ok=False, loaded_at="", rules=0)
    wrong = state.facts.errors_for_status()
    if not wrong:
        return status
    errors = (*status.errors, *wrong)
    return with_errors(attrs.evolve(status, ok=False), errors, ERRORS_MAX)


def fitting_status(status: PolicyStatus, limit: int = FRAME_MAX - ENVELOPE_MAX) -> PolicyStatus:
    """The status with as many of its folders and errors as fit into so many bytes."""
    all_errors = (
        PolicyErrorInfo(
            file=bounded_text(error.file),
            line=error.line,
            column=error.column,
            message=bounded_text(error.message),
            help=bounded_text(error.help),
            text=bounded_text(error.text),
        )
        for error in status.errors
    )
    errors = fitting(all_errors, limit // 2)
    folders = fitting_texts(status.folders, limit // 4)
    return attrs.evolve(
        status,
        errors=errors,
        folders=folders,
        errors_left_out=status.errors_left_out + len(status.errors) - len(errors),
        folders_left_out=len(status.folders) - len(folders),
    )


def with_errors(
    status: PolicyStatus, errors: Sequence[PolicyErrorInfo], at_most: int
) -> PolicyStatus:
    """The status with the first of these errors; it counts the others as left out."""
    left_out = status.errors_left_out + max(0, len(errors) - at_most)
    return attrs.evolve(status, errors=tuple(errors[:at_most]), errors_left_out=left_out)
