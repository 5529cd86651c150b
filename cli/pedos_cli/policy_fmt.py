"""`qvm-policy fmt`: aligns the columns of policy files, and changes nothing else in them."""

from __future__ import annotations

import os

from pedos_protocol.errors import CallError

from pedos_cli import output, policy_change, policy_engine, policy_files, policy_live
from pedos_cli.answers import DONE, FAILED
from pedos_cli.policy_replace import content, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

COLUMNS = 5
SERVICE_COLUMNS = 3
"""The columns of a rule's line in a file of `!include-service`, which has given the first two."""

ANY_SERVICE = (("*", "*"), ("device.*.*", "*"))
"""What an `!include-service` might say of a file that no file includes yet."""

GAP = "  "
BLANKS = " \t"

RULE_MAX = 512
"""Characters of a rule's line, as the language bounds them: alignment must not exceed it."""

DESCRIPTION = (
    "Align the columns of policy files. Rules without a blank line between them are aligned with "
    "each other. Comments, blank lines and the order of all lines stay as they are, and so does "
    "the meaning: the command parses the result and compares it before it writes. Without NAME, "
    "it aligns all files of the administrator's folder. Name an included file by its path in the "
    "folder; a file of !include-service has three columns."
)
EXAMPLES = (
    ("qvm-policy fmt", "every file of the administrator's folder"),
    ("qvm-policy fmt 30-user.policy", "one of them"),
    ("qvm-policy fmt include/common", "a file that others include"),
    ("qvm-policy fmt --check", "only tell which would be changed; the exit status is then 1"),
    ("qvm-policy fmt -", "as a filter"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `fmt` takes."""
    parser.add_argument(
        "names", metavar="NAME", nargs="*",
        help="a policy file's name; or - alone for standard input to standard output",
    )  # fmt: skip
    policy_files.add_folder_option(parser)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; report which files would change"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(session: Session) -> int:
    """Align the files, or report which are not aligned."""
    args = session.args
    if args.names == ["-"]:
        return _filter(session)
    where = policy_files.folders(args)
    folder = where[-1]
    if args.names:
        names = list(dict.fromkeys(map(policy_files.file_name, args.names)))
    else:
        names = [name for name in policy_files.names(folder) if _is_proper(name)]
    services = _services(where) if args.names else {}
    results: list[dict[str, object]] = []
    aligned_names: list[str] = []
    status = DONE
    for name in names:
        data = policy_files.read(os.path.join(folder, name))
        if data is None:
            missing = CallError("not_found", f"there is no {name} in {folder}")
            status = session.fail(missing)
            continue
        aligned = aligned_bytes(name, data, services.get(os.path.normpath(name)))
        changed = aligned != data
        results.append({"name": name, "changed": changed})
        if changed and args.check:
            status = FAILED
            if not args.json:
                output.put(f"{name} is not aligned")
        elif changed:
            expected = policy_files.digest(data)
            try:
                result = policy_change.apply(session, where, name, aligned, expected)
            except policy_engine.BrokenPolicyError as broken:
                return refused(session, name, broken)
            results[-1] = result
            aligned_names.append(name)
            if not args.json:
                policy_live.put_result(session, f"{name} aligned", result)
    if args.json and aligned_names:
        said = f"{', '.join(aligned_names)} aligned"
        session.did(said, lambda: output.put_json({"files": results}))
    elif args.json:
        output.put_json({"files": results})
    return status


def _is_proper(name: str) -> bool:
    return set(name) <= policy_files.NAME_CHARACTERS


def _filter(session: Session) -> int:
    data = content("-")
    aligned = aligned_bytes("standard input", data)
    if session.args.check:
        return FAILED if aligned != data else DONE
    if session.args.json:
        output.put_json({"changed": aligned != data, "content": aligned.decode("utf-8")})
    else:
        output.put_bytes(aligned)
    return DONE


def _services(where: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The service and argument of each file that an !include-service includes."""
    loaded = policy_engine.read(where)
    return {os.path.normpath(name): each for name, each in loaded.services.items()}


def aligned_bytes(name: str, data: bytes, service: tuple[str, str] | None = None) -> bytes:
    """Return the file with its columns aligned; raise CallError if its meaning would change.

    A change of meaning is a bug, or the file is no text; either way the file stays as it is.
    `service` is the service that an !include-service names for it; if no file includes it, its
    lines tell.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        message = f"{name} is not UTF-8 text"
        raise CallError("failed", message, {"hint": "qvm-policy check"}) from None
    kinds = (None, *ANY_SERVICE) if service is None else (service,)
    kind, meaning = kinds[0], None
    for kind in kinds:
        meaning = policy_engine.meaning(text, kind)
        if meaning is not None:
            break
    if meaning is None:
        message = f"{name} has an error, and is left as it is"
        raise CallError("failed", message, {"hint": "qvm-policy check"})
    result = align(text, COLUMNS if kind is None else SERVICE_COLUMNS)
    if policy_engine.meaning(result, kind) != meaning:
        raise CallError("failed", f"{name} cannot be aligned without a change of its meaning")
    return result.encode("utf-8")


def align(text: str, columns: int = COLUMNS) -> str:
    """Return `text` with the `columns` of its rules aligned; as many lines as before.

    The function is idempotent.
    """
    lines = text.split("\n")
    if lines[-1] != "":
        lines.append("")  # so that the last line ends like every other
    result: list[str] = []
    block: list[str] = []
    for line in lines:
        bare = line.rstrip(BLANKS + "\r")
        if bare == "" and block:
            result += _aligned_block(block, columns)
            block = []
        if bare == "":
            result.append("")
        else:
            block.append(bare)
    return "\n".join([*result, *_aligned_block(block, columns)])


def _aligned_block(lines: list[str], columns: int) -> Iterator[str]:
    """Yield the lines of one block; only its rules determine how wide the columns are."""
    rows = [_fields(line) for line in lines]
    rules = [row for row in rows if row and len(row) >= columns and not row[0].startswith("!")]
    widths = [max(len(row[at]) for row in rules) for at in range(columns)] if rules else []
    if rules and max(len(_row(row, widths)) for row in rules) > RULE_MAX:
        widths = [0] * columns
    for line, row in zip(lines, rows, strict=True):
        if row is None:
            yield line
        elif len(row) < columns or row[0].startswith("!"):
            yield " ".join(row)
        else:
            yield _row(row, widths)


def _row(row: list[str], widths: list[int]) -> str:
    if not any(widths):
        return " ".join(row)
    cells = [word.ljust(width) for word, width in zip(row, widths, strict=False)]
    return GAP.join([*cells[:-1], " ".join([cells[-1], *row[len(widths) :]])]).rstrip(BLANKS)


def _fields(line: str) -> list[str] | None:
    """Return the words of a rule or directive; None for a comment, which stays as it is."""
    bare = line.strip(BLANKS)
    if bare.startswith("#"):
        return None
    # Only blanks and tabs separate words: str.split() would accept other characters too.
    return [word for word in bare.replace("\t", " ").split(" ") if word]
