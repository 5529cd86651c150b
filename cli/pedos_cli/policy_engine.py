"""The policy engine of dom0's service, as the command line uses it on files.

This is the only module here that imports from pedos_dom0, and only on demand: a VM does not have
that package, and needs it only for what dom0 alone may do.
"""

from __future__ import annotations

import os

from pedos_protocol.errors import CallError

from pedos_cli import output, policy_files
from pedos_cli.answers import take_maps
from pedos_cli.arguments import UsageError
from pedos_cli.output import show
from pedos_cli.place import inside_vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from pedos_dom0.policy.decision import Decision
    from pedos_dom0.policy.model import PolicyError, Rule
    from pedos_dom0.policy.reading import Loaded
    from pedos_dom0.policy.system import System

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

TIMEOUT_S = 10.0
"""Seconds for a page of the VMs' facts: the service answers from memory."""

PAGES_MAX = 1000
"""Pages of VMs' facts: far more VMs than a machine has, so that a faulty service ends the loop."""

SYSTEM_MAX = 16 * 1024 * 1024
"""Bytes of a file of VMs' facts: some 300 bytes per VM, so tens of thousands of VMs."""

FIRST_MAX = 400
"""Characters of an error that is quoted in a sentence."""

ERRORS_SHOWN = 50
"""Errors that are shown to people; --json has all."""


def add_system_option(parser: Parser) -> None:
    """Add `--system`."""
    parser.add_argument(
        "--system", metavar="FILE",
        help="a JSON file of the VMs and their types, tags and states, instead of the service's "
        "facts",
    )  # fmt: skip


def add_trial_options(parser: Parser) -> None:
    """Add `--policy-dir`, `--with` and `--without`: which policy to look at."""
    policy_files.add_folder_option(parser)
    parser.add_argument(
        "--with", metavar="NAME=FILE", action="append", dest="with_",
        help="as if the policy file NAME had the content of FILE; nothing is written",
    )  # fmt: skip
    parser.add_argument(
        "--without", metavar="NAME", action="append",
        help="as if there were no policy file NAME",
    )  # fmt: skip


def replaced(args: argparse.Namespace) -> dict[str, bytes | None]:
    """Return what `--with` and `--without` put in place of files."""
    found: dict[str, bytes | None] = {}
    for text in args.with_ or ():
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(
                f"'{show(text, 128)}' is not NAME=FILE, as in --with 30-user.policy=draft"
            )
        data = policy_files.read_input(path)
        if data is None:
            raise UsageError(f"there is no file {show(path, 256)}")
        found[policy_files.file_name(name)] = data
    for name in args.without or ():
        found[policy_files.file_name(name)] = None
    return found


def read(where: Sequence[str], instead: Mapping[str, bytes | None] | None = None) -> Loaded:
    """Return the rules and errors of the policy in the folders `where`, with files replaced."""
    from pathlib import Path  # noqa: PLC0415  (help does without)

    try:
        from pedos_dom0.policy.reading import read_policy  # noqa: PLC0415
    except ImportError as error:
        raise _missing(error) from error
    return read_policy([Path(folder) for folder in where], replaced=instead)


class Findings:
    """What `check` says of rules beyond the language: `errors` although the service accepts them,
    `warnings` of rules that do nothing, `notes` on rules that may do more than is meant."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        try:
            from pedos_dom0.policy import lint, loose_kinds  # noqa: PLC0415
        except ImportError as error:
            raise _missing(error) from error
        self.errors = tuple(lint.errors(rules))
        self.warnings = tuple(lint.warnings(rules))
        self.notes = tuple(loose_kinds.notes(rules))

    def doubts(self) -> Iterator[PolicyError]:
        """Yield what is no error, with what it is before its message."""
        for word, found in (("warning", self.warnings), ("note", self.notes)):
            for each in found:
                yield type(each)(
                    each.file, each.line, each.column, f"{word}: {each.message}", each.help,
                    each.text,
                )  # fmt: skip


def read_good(
    args: argparse.Namespace,
    where: Sequence[str],
    instead: Mapping[str, bytes | None] | None = None,
) -> Loaded:
    """Return the policy like `read`; raise BrokenPolicyError if it has an error.

    `where` and `instead` come from `args`: the error suggests `check` with the same arguments.
    """
    loaded = read(where, instead)
    if loaded.errors:
        raise BrokenPolicyError(loaded.errors, _check_command(args))
    return loaded


def _check_command(args: argparse.Namespace) -> str:
    import shlex  # noqa: PLC0415  (only who fails pays for it)

    words = ["qvm-policy", "check"]
    for option, values in (
        ("--policy-dir", args.folders),
        ("--with", args.with_),
        ("--without", args.without),
    ):
        for value in values or ():
            words += [option, value]
    return shlex.join(words)


def mend_hint(where: Sequence[str], error: PolicyError) -> str:
    """Return what to do first about an error that no change of another file removes."""
    if error.file in where:
        return f"mkdir -p {error.file}, or whatever is wrong with that folder"
    path = policy_files.find(where, error.file)
    try:
        name = policy_files.file_name(error.file)
    except UsageError:
        name = ""
    if path is not None and name and path == os.path.join(where[-1], name):
        return f"correct that first: qvm-policy edit {name}"
    return f"correct {show(path or error.file, 256)} first"


class BrokenPolicyError(CallError):
    """The policy has errors, so that it can decide nothing."""

    def __init__(self, errors: Sequence[PolicyError], hint: str = "qvm-policy check") -> None:
        count = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        first = f"the policy has {count}, the first at {show(errors[0], FIRST_MAX)}"
        if len(errors) == 1:
            first = f"the policy has an error: {show(errors[0], FIRST_MAX)}"
        super().__init__("failed", first, {"hint": hint})
        self.errors = tuple(errors)
        self.count = count


def error_lines(errors: Sequence[PolicyError]) -> Iterator[str]:
    """Yield the lines that show `errors` to people: place, line, caret, help."""
    for error in errors[:ERRORS_SHOWN]:
        # In an error's position a tab counts as one column, and the caret has to match.
        rendered = error.render(output.columns_before).replace("\t", " ")
        if not error.line:  # the error concerns the file or folder itself
            rendered = rendered.replace(":0:0: ", ": ", 1)
        yield from rendered.splitlines()
    if len(errors) > ERRORS_SHOWN:
        yield f"and {len(errors) - ERRORS_SHOWN} errors more (--json shows all)"


def errors_json(errors: Sequence[PolicyError]) -> list[dict[str, object]]:
    """Return `errors` in their JSON form."""
    return [
        {
            "file": error.file,
            "line": error.line,
            "column": error.column,
            "message": error.message,
            "help": error.help,
            "text": error.text,
        }
        for error in errors
    ]


def system(session: Session) -> System:
    """Return the facts about VMs: from `--system`, or else from the service.

    Raises CallError if the file is invalid, client.Unreachable if there is no service.
    """
    try:
        from pedos_dom0.policy.system import System, SystemFactsError  # noqa: PLC0415
    except ImportError as error:
        raise _missing(error) from error
    path = session.args.system
    facts: object = _facts_of_file(path) if path else {"domains": _facts_of_service(session)}
    try:
        return System.from_json(facts)
    except SystemFactsError as error:
        where = show(path, 256) if path else "the service's answer"
        raise CallError("failed", f"{where}: {error}") from error


def _facts_of_file(path: str) -> object:
    import json  # noqa: PLC0415

    try:
        with open(path, "rb") as file:
            data = file.read(SYSTEM_MAX + 1)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise CallError("failed", f"{show(path, 256)} cannot be read: {why}") from error
    if len(data) > SYSTEM_MAX:
        raise CallError("failed", f"{show(path, 256)} has more than {SYSTEM_MAX} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CallError("failed", f"{show(path, 256)} is not JSON: {error}") from error


def _facts_of_service(session: Session) -> dict[str, object]:
    from pedos_cli.client import Unreachable  # noqa: PLC0415

    domains: dict[str, object] = {}
    after: str | None = None
    for _ in range(PAGES_MAX):
        try:
            answer = session.call("policy.system", {"after": after}, TIMEOUT_S)
        except Unreachable as error:
            raise CallError(
                "unavailable",
                f"which VMs there are is not known: no service answers at {error.path}, "
                "and no --system FILE is given",
                {"hint": "--system FILE, or start the service"},
            ) from error
        page = take_maps(answer, "vms")
        domains.update((str(vm.get("name")), vm) for vm in page)
        if not page or not answer.get("more"):
            break
        after = str(page[-1].get("name"))
    return domains


def decide(loaded: Loaded, facts: System, asked: Sequence[str], *, trace: bool) -> Decision:
    """Return what the policy says to `asked`: service, argument, source, target."""
    from pedos_dom0.policy.evaluate import Request, evaluate  # noqa: PLC0415

    return evaluate(Request(*asked), loaded.snapshot, facts, trace=trace)


def system_of(domains: Mapping[str, object]) -> System:
    """Return facts about VMs from their JSON form; raise CallError if it is invalid."""
    from pedos_dom0.policy.system import System, SystemFactsError  # noqa: PLC0415

    try:
        return System.from_json({"domains": dict(domains)})
    except SystemFactsError as error:
        raise CallError("failed", str(error)) from error


def meaning(text: str, service: tuple[str, str] | None = None) -> list[object] | None:
    """Return the meaning of a policy file, line by line, without its layout.

    None if it has an error. `service`: it is a file of an !include-service with these two words.
    """
    try:
        from pedos_dom0.policy.parser import Directive, parse  # noqa: PLC0415
    except ImportError as error:
        raise _missing(error) from error
    parsed = parse("", text, service=service)
    if parsed.errors:
        return None
    return [
        (item.line, item.name, item.words)
        if isinstance(item, Directive)
        else (item.line, item.text, item)
        for item in parsed.items
    ]


def is_rule(text: str) -> bool:
    """Say whether `text` is one rule without an error."""
    found = meaning(text)
    return found is not None and len(found) == 1 and "\n" not in text


def _missing(error: ImportError) -> CallError:
    module = show(error.name or "pedos_dom0", 64)
    if inside_vm():
        message = f"only dom0 has the policy (the Python package {module} is not installed here)"
        return CallError("unavailable", message, {"hint": "qvm-policy explain --mine --help"})
    message = f"the Python package {module} is not installed, and the policy engine is part of it"
    return CallError("unavailable", message, {"hint": "install the package of dom0's service"})
