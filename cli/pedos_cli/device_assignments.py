"""`qvm-device CLASS list --assignments`: which VM is to have which device, and has it."""

from __future__ import annotations

from pedos_protocol.errors import CallError

from pedos_cli import output
from pedos_cli.answers import DONE, older_service, options_text, take
from pedos_cli.assign_words import became
from pedos_cli.devices import TIMEOUT_S, assignment_name, list_assignments
from pedos_cli.output import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_cli.run import Session

HEADER = ("BACKEND:DEVID[:IDENTITY]", "VM", "MODE", "OPTIONS", "NOW")


def run(session: Session, vms: Sequence[str] | None, exclude: Sequence[str]) -> int:
    """List the assignments of one class."""
    args = session.args
    try:
        assignments, answer = list_assignments(
            lambda method, params: session.call(method, params, TIMEOUT_S),
            args.device_class,
            vms,
            exclude,
        )
    except CallError as error:
        what = "tells of assignments only in the list of devices"
        raise older_service(error, what, f"{args.command} list") from error
    if args.json:
        output.put_json({"assignments": assignments, "policy": answer.get("policy")})
    elif assignments:
        output.table(map(row, assignments), HEADER)
    else:
        session.note(f"no {args.device_class} device is assigned to a VM here")
    if (policy := answer.get("policy")) is not None:
        session.warn_of_policy(policy)
    return DONE


def row(assignment: Mapping[str, object]) -> tuple[str, str, str, str, str]:
    """Return the cells of an assignment under HEADER."""
    return (
        assignment_name(assignment, take(assignment, "backend", str)),
        take(assignment, "vm", str),
        take(assignment, "mode", str),
        options_text(take(assignment, "options", dict)) or NOTHING,
        "; ".join(became(assignment)),
    )
