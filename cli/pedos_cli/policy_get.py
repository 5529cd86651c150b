"""`qvm-policy get`: lists the policy files, or prints one."""

from __future__ import annotations

import os

from pedos_protocol.errors import CallError

from pedos_cli import output, policy_files
from pedos_cli.answers import DONE
from pedos_cli.arguments import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

HEADER = ("NAME", "FOLDER", "STATE")

DESCRIPTION = (
    "Print one policy file, byte by byte; or, without a name, list the files in the order in "
    "which they are read. Of two files with one name only that of the first folder counts; the "
    "list marks the other. Needs no running service."
)
EXAMPLES = (
    ("qvm-policy get", "the files in reading order"),
    ("qvm-policy get 30-user.policy", "what stands in one"),
    ("qvm-policy get 30-user.policy --sha256", "its hash, as replace and remove take it"),
    ("qvm-policy get 30-user.policy --json", "all of it for programs"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `get` takes."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a policy file's name")
    policy_files.add_folder_option(parser)
    parser.add_argument(
        "--sha256", action="store_true",
        help="print the hash of the file that replace and remove would change",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(session: Session) -> int:
    """Print a file, its hash, or the list."""
    args = session.args
    where = policy_files.folders(args)
    if args.name is None:
        if args.sha256:
            raise UsageError("--sha256 is of one file: which one is not said")
        return _list(where, as_json=args.json)
    name = policy_files.file_name(args.name)
    # The hash is for a later write, and only the last folder is written to.
    path = os.path.join(where[-1], name) if args.sha256 else policy_files.find(where, name)
    data = None if path is None else policy_files.read(path)
    if path is None or data is None:
        places = where[-1] if args.sha256 else ", ".join(where)
        raise CallError("not_found", f"there is no {name} in {places}", {"hint": "qvm-policy get"})
    if args.json:
        output.put_json(
            {
                "name": name,
                "folder": os.path.dirname(path),
                "sha256": policy_files.digest(data),
                "writable": path == os.path.join(where[-1], name),
                "content": data.decode("utf-8", "backslashreplace"),
            }
        )
    elif args.sha256:
        output.put(policy_files.digest(data))
    elif output.on_terminal():
        for line in data.decode("utf-8", "backslashreplace").split("\n"):
            output.put(line.replace("\t", "    "))
    else:
        output.put_bytes(data)
    return DONE


def _list(where: Sequence[str], *, as_json: bool) -> int:
    files = listed(where)
    if as_json:
        output.put_json({"folders": list(where), "files": files})
        return DONE
    rows = []
    for each in files:
        state = "in use"
        if each["hidden_by"]:
            state = f"hidden by that in {each['hidden_by']}"
        elif not each["used"]:
            state = "an error: no policy file may have this name"
        rows.append((str(each["name"]), str(each["folder"]), state))
    if rows:
        output.table(rows, HEADER)
    return DONE


def listed(where: Sequence[str]) -> list[dict[str, object]]:
    """Return all files of all folders in reading order, and which of them count.

    A missing folder has no files: /run/pedos/policy.d is made only when it is needed.
    """
    found: list[dict[str, object]] = []
    first: dict[str, str] = {}
    for folder in where:
        if len(where) > 1 and not os.path.lexists(folder):
            continue
        for name in policy_files.names(folder):
            hidden_by = first.get(name)
            first.setdefault(name, folder)
            found.append(
                {
                    "name": name,
                    "folder": folder,
                    "used": hidden_by is None and set(name) <= policy_files.NAME_CHARACTERS,
                    "hidden_by": hidden_by,
                }
            )
    return sorted(found, key=lambda each: os.fsencode(str(each["name"])))
