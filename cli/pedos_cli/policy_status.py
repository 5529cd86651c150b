"""`qvm-policy status`: shows the policy in force, since when, the errors of a newer one, and the
service's own troubles."""

from __future__ import annotations

from pedos_cli import output
from pedos_cli.answers import DONE, left_out, take, take_maps
from pedos_cli.output import TEXT_MAX, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

TIMEOUT_S = 10.0
"""Seconds for the status: the service answers from memory."""

DESCRIPTION = (
    "Show which policy is in force in the running service, since when, and the errors of a newer "
    "one that was rejected; and whether the service can write its records. The exit status tells "
    "only whether the service answered."
)
EXAMPLES = (
    ("qvm-policy status", "for people"),
    ("qvm-policy status --json", "for programs"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `status` takes."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(session: Session) -> int:
    """Print what the service says about its policy."""
    status = session.call("service.status", {}, TIMEOUT_S)
    if session.args.json:
        policy, troubles = take(status, "policy", dict), _troubles(status)
        output.put_json({**policy, "troubles": troubles} if troubles else policy)
        return DONE
    for line in status_lines(status):
        output.put(line)
    return DONE


def status_lines(status: Mapping[str, object], encoding: str | None = None) -> Iterator[str]:
    """Yield what an answer to `service.status` says of the policy, and of the service's troubles.
    `encoding` is that of what shows the lines, where that is not standard output."""
    policy = take(status, "policy", dict)
    loaded_at = policy.get("loaded_at")
    rules = take(policy, "rules", int)
    counted = "1 rule" if rules == 1 else f"{rules} rules"
    if isinstance(files := policy.get("files"), int):
        counted += " of 1 file" if files == 1 else f" of {files} files"
    if not loaded_at:
        yield "policy: none in force, everything is denied"
    else:
        yield f"policy: in force since {loaded_at}, {counted}"
    folders = policy.get("folders")
    if isinstance(folders, list) and folders:
        more = left_out(policy, "folders")
        yield "  read from: " + " ".join(map(show, folders)) + (f" and {more} more" if more else "")
    errors = take_maps(policy, "errors")
    if errors:
        yield "a newer policy was not taken, because of:"
    for error in errors:
        for line in _error_lines(error, encoding):
            yield f"  {line}"
    if more := left_out(policy, "errors"):
        yield f"  and {more} more"
    for trouble in _troubles(status):
        yield f"trouble: {show(trouble)}"


def _troubles(status: Mapping[str, object]) -> list[object]:
    troubles = status.get("troubles")
    return troubles if isinstance(troubles, list) else []


def _error_lines(error: Mapping[str, object], encoding: str | None) -> Iterator[str]:
    places = (error.get("line"), error.get("column"))  # 0: none in particular
    where = ":".join([show(error.get("file")), *(show(place) for place in places if place)])
    yield f"{where}: {show(error.get('message'))}"
    text, column = error.get("text"), error.get("column")
    if text and isinstance(column, int):
        text = str(text).replace("\t", " ")[:TEXT_MAX]
        yield f"    {text}"
        if 0 < column <= len(text) + 1:
            yield "    " + " " * output.columns_before(text, column, encoding) + "^"
    if error.get("help"):
        yield f"  help: {show(error['help'])}"
