"""`qvm-policy eval`: answers many requests, given as JSON lines, in their order."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError

from pedos_cli import output, policy_engine, policy_files
from pedos_cli.answers import DONE, FAILED
from pedos_cli.output import show
from pedos_cli.policy_replace import say_if_typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

    Decide = Callable[[Sequence[str]], dict[str, object]]

LINE_MAX = 16 * 1024
"""Bytes of one request: the longest valid one has some 700, so this bounds memory only."""

FIELDS = ("service", "arg", "source", "target")

DESCRIPTION = (
    "Read requests, one JSON object per line, and write one line of JSON for each, in their order "
    "and as soon as each is decided. A request is "
    '{"service": "...", "arg": "+...", "source": "...", "target": "..."}; an empty or missing '
    'target is @default. A line that is no request is answered in its place with {"error": '
    '"..."}, and the exit status is then 1. The files are read once, at the start; no running '
    "service is needed if --system is given."
)
EXAMPLES = (
    ("qvm-policy eval requests.jsonl", "answers for all, with the VMs that the service knows"),
    (
        "qvm-policy eval --policy-dir ./policy.d --system vms.json requests.jsonl",
        "without a service",
    ),
    ("qvm-policy eval --with 30-user.policy=draft --trace requests.jsonl", "what would change"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `eval` takes."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-",
        help="the requests (default: standard input)",
    )  # fmt: skip
    policy_engine.add_trial_options(parser)
    policy_engine.add_system_option(parser)
    parser.add_argument("--trace", action="store_true", help="say why each rule did not match")
    parser.add_argument("--json", action="store_true", help="print JSON, which is the default")


def run(session: Session) -> int:
    """Answer every line; returns 1 if one of them was no request."""
    args = session.args
    loaded = policy_engine.read_good(args, policy_files.folders(args), policy_engine.replaced(args))
    facts = policy_engine.system(session)

    def decide(asked: Sequence[str]) -> dict[str, object]:
        decision = policy_engine.decide(loaded, facts, asked, trace=args.trace)
        return dict(decision.to_json(args.trace))

    if args.file == "-":
        if sys.stdin is None:
            raise CallError("failed", "standard input is closed, and no FILE is given")
        say_if_typed()
        return answer_lines(sys.stdin.buffer, decide)
    try:
        source = open(args.file, "rb")  # noqa: SIM115  (its errors are not those of an answer)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise CallError("failed", f"{show(args.file, 256)} cannot be read: {why}") from error
    with source:
        return answer_lines(source, decide)


def answer_lines(source: BinaryIO, decide: Decide) -> int:
    """Answer every line of `source` on standard output; returns the exit status."""
    status = DONE
    for line in _lines(source):
        try:
            answer = decide(_request(line))
        except _NoRequestError as error:
            status = FAILED
            answer = {"error": str(error)}
        output.put_text(output.json_text(answer) + "\n")
        output.finish()  # a caller that writes one request and waits must get its answer
    return status


class _NoRequestError(Exception):
    """A line that is no request; the text says why."""


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """Yield each line without its end; of an overlong line only the beginning."""
    while line := source.readline(LINE_MAX + 1):
        if len(line) > LINE_MAX and not line.endswith(b"\n"):
            while (rest := source.readline(LINE_MAX)) and not rest.endswith(b"\n"):
                pass
        yield line.removesuffix(b"\n")


def _request(line: bytes) -> tuple[str, str, str, str]:
    import json  # noqa: PLC0415

    if len(line) > LINE_MAX:
        raise _NoRequestError(f"a line of more than {LINE_MAX} bytes")
    try:
        untrusted = json.loads(line)
    except UnicodeDecodeError:
        raise _NoRequestError("the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _NoRequestError(f"the line is not JSON: {show(error, 128)}") from None
    if not isinstance(untrusted, dict):
        raise _NoRequestError("the line is not a JSON object")
    if "argument" in untrusted:
        untrusted.setdefault("arg", untrusted["argument"])
    untrusted.setdefault("target", "")
    missing = [name for name in FIELDS if name not in untrusted]
    if missing:
        raise _NoRequestError(f"{', '.join(missing)} missing: a request has {', '.join(FIELDS)}")
    for name in FIELDS:
        if not isinstance(untrusted[name], str):
            raise _NoRequestError(f"{name} is not a string")
    return (untrusted["service"], untrusted["arg"], untrusted["source"], untrusted["target"])
