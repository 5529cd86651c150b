"""`qvm-audit`: shows what was decided and done. It reads the log's files and needs no service."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError

from pedos_cli import output, place
from pedos_cli.answers import DONE
from pedos_cli.arguments import TELLING, Parser, UsageError, examples, vm_name
from pedos_cli.output import show
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import NoReturn

    from pedos_cli.audit_log import Record, Unread
    from pedos_cli.run import Session

PROG = "qvm-audit"
ACTIONS = ("list", "tail", "show")

REQUEST_LENGTH = 12
"""Characters of a request's id, as the service makes them."""

TAIL_LINES = 10
TAIL_MAX = 10_000
"""Records of one `tail`, which it holds in memory; for more there is `list --since`."""

ROWS_ALIGNED = 1000
"""Rows whose columns are aligned with each other: a whole log would not fit into memory."""

FOLLOW_S = 0.25
"""Seconds between two looks at a followed log: immediate for the eye, and one stat(2) each."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

DAYS = {"today": 0, "yesterday": 1}

SPAN_DIGITS = 6
"""Digits of a number before a unit: 999999 hours are more than a hundred years."""

_WITH_VALUE = ("--since", "--vm", "--file", "-n", "--lines")


def build_parser() -> Parser:
    """Return the parser of `qvm-audit`."""
    parser = Parser(
        prog=PROG,
        description="Look at dom0's audit log: who asked for what, what the policy said and by "
        "which rule, and what was done. Without an action, list. Times are this machine's.",
        epilog=examples(
            (f"{PROG} --since 2h --denied", "what was denied in the last two hours"),
            (f"{PROG} tail -f", "the last records, and each new one"),
            (f"{PROG} show 3f9c01ab77de", "one request, by the id that a VM's user tells you"),
        ),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", prog=PROG)
    listing = actions.add_parser(
        "list",
        help="every record, oldest first",
        description="List every record, oldest first; the filters add up.",
        epilog=examples(
            (f"{PROG} list --since 2026-01-31", "since midnight of that day"),
            (f"{PROG} list --since 3d --vm work", "what work asked for, got or lent in three days"),
            (f"{PROG} list --json", "for programs: one JSON object per line, as in the log"),
        ),
        level=2,
    )
    _add_filters(listing)
    _add_common(listing)
    listing.set_defaults(verb=list_records)
    tail = actions.add_parser(
        "tail",
        help="the last records",
        description="Show the last records, and with -f each new one as it is written, also "
        "after the log was rotated.",
        epilog=examples(
            (f"{PROG} tail -n 50", "the last fifty"),
            (f"{PROG} tail -f --denied", "denials, as they happen"),
        ),
        level=2,
    )
    tail.add_argument(
        "-n", "--lines", metavar="N", default=str(TAIL_LINES),
        help=f"how many records (default {TAIL_LINES})",
    )  # fmt: skip
    tail.add_argument("-f", "--follow", action="store_true", help="continue as records are written")
    _add_filters(tail)
    _add_common(tail)
    tail.set_defaults(verb=show_last)
    one = actions.add_parser(
        "show",
        help="one request, in words",
        description="Show everything that belongs to one request, in order and in words.",
        epilog=examples((f"{PROG} show 3f9c01ab77de", "the request with this id")),
        level=2,
    )
    one.add_argument("id", metavar="ID", help="the request id in a denial, or the id of a call")
    _add_common(one)
    one.set_defaults(verb=show_request)
    return parser


def _add_filters(parser: Parser) -> None:
    parser.add_argument(
        "--since", metavar="TIME",
        help="only records since: 10m, 2h, 3d ago; today, 14:00, 2026-01-31T14:00",
    )  # fmt: skip
    parser.add_argument("--denied", action="store_true", help="only what was denied")
    parser.add_argument("--vm", metavar="VM", help="only what this VM asked for, got, has or lends")


def _add_common(parser: Parser) -> None:
    parser.add_argument(
        "--file", metavar="FILE",
        help="the log (default: $PEDOS_AUDIT, or that of the system of $PEDOS_SOCKET, or "
        f"{place.DEFAULT_AUDIT})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with every field")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; raises UsageError, or SystemExit after showing help.

    The action may stand anywhere, and without one it is `list`.
    """
    words = list(argv)
    at = _first_word(words)
    if at is not None and words[at] not in ACTIONS:
        raise UsageError(
            f"'{show(words[at], 64)}' is no action: the actions are {', '.join(ACTIONS)}",
            f"{PROG} show {words[at]}" if _is_request(words[at]) else None,
        )
    if at is not None:
        words.insert(0, words.pop(at))
    elif not {"-h", *TELLING} & set(words):
        words.insert(0, "list")
    return build_parser().parse_args(words)


def _is_request(word: str) -> bool:
    return len(word) == REQUEST_LENGTH and set(word) <= set("0123456789abcdef")


def _first_word(words: Sequence[str]) -> int | None:
    """Return the position of the first word that is neither an option nor an option's value."""
    is_value = False
    for at, word in enumerate(words):
        if not is_value and not word.startswith("-"):
            return at
        is_value = not is_value and word in _WITH_VALUE
    return None


# Verbs


def list_records(session: Session) -> int:
    """Print every record that passes the filters, oldest first."""
    from pedos_cli import audit_log  # noqa: PLC0415  (help does without, and starts faster)

    wanted, since = _filter(session.args)
    unread = audit_log.Unread()
    path = _path(session.args)
    of_vm = session.args.vm or ""
    found = _guarded(path, audit_log.records(path, since=since, containing=of_vm, unread=unread))
    _Printer(as_json=session.args.json, unread=unread).put_all(filter(wanted, found))
    _tell_unread(session, unread)
    return DONE


def show_last(session: Session) -> int:
    """Print the last records; with -f continue until interrupted."""
    from pedos_cli import audit_log  # noqa: PLC0415  (as above)

    wanted, since = _filter(session.args)
    number = _number(session.args.lines)
    unread = audit_log.Unread()
    path = _path(session.args)
    printer = _Printer(as_json=session.args.json, unread=unread)
    try:
        found, follower = audit_log.last_records(
            path, number, wanted, unread,
            since=since, containing=session.args.vm or "", follow=session.args.follow,
        )  # fmt: skip
    except OSError as error:
        _refuse(path, error)
    printer.put_all(found)
    _tell_unread(session, unread)
    if follower is not None:
        try:
            while True:  # until an interrupt
                printer.put_all(filter(wanted, _guarded(path, follower.new())))
                output.finish()
                _tell_unread(session, unread)
                wait()
        finally:
            follower.close()
    return DONE


def show_request(session: Session) -> int:
    """Print everything with one request's id, in order, in words."""
    from pedos_cli import audit_log, audit_text  # noqa: PLC0415  (as above)
    from pedos_cli.audit_calls import in_sum, lacks_ids, request_of  # noqa: PLC0415
    from pedos_cli.audit_text import has_id  # noqa: PLC0415

    request = session.args.id
    if not (0 < len(request) <= 64 and request.isascii() and request.isalnum()):
        raise UsageError(f"'{show(request, 64)}' is not a request's id: letters and digits")
    unread = audit_log.Unread()
    path = _path(session.args)

    def containing(text: str, unread: Unread) -> Iterator[Record]:
        return _guarded(path, audit_log.records(path, containing=text, unread=unread))

    asked, begins = request, request[:REQUEST_LENGTH]  # as much of an id as a sum has
    found = [record for record in containing(begins, unread) if has_id(record, request)]
    if all(in_sum(record, request) for record in found):  # it may be that of a call
        named = (request_of(record, request) for record in containing(begins, audit_log.Unread()))
        request = next(filter(None, named), request)
    if request != asked:
        again = containing(request, audit_log.Unread())
        others = [record for record in again if has_id(record, request) and record not in found]
        found = sorted([*found, *others], key=lambda record: str(record.get("time")))
    _tell_unread(session, unread)
    if not found:
        sums = sum(map(lacks_ids, containing("ids_left_out", audit_log.Unread())))
        counted = f"; sums that count calls without their ids: {sums}" if sums else ""
        raise CallError(
            "not_found",
            f"no record of the request {request} in {path}{counted}",
            {"hint": f"{PROG} --vm VM (what a VM repeats is counted, not written one by one)"},
        )
    if session.args.json:
        output.put_json({"request": request, "records": found})
        return DONE
    output.put(f"request {request}")
    for record in found:
        first, *more = audit_text.sentences(record)
        if in_sum(record, asked) or in_sum(record, request):
            more.insert(0, "The call that was asked for is one of these.")
        when = audit_text.local_time(record)
        output.put(f"  {when}  {first}")
        for line in more:
            output.put(f"  {'':{len(when)}}  {line}")
    return DONE


def wait() -> None:
    """Wait before the next look at the log."""
    from time import sleep  # noqa: PLC0415  (only who follows needs it)

    sleep(FOLLOW_S)


class _Printer:
    """Prints records in columns, or as JSON lines. Widths grow and never shrink again."""

    def __init__(self, *, as_json: bool, unread: Unread) -> None:
        self._as_json = as_json
        self._unread = unread
        self._widths: list[int] = []

    def put_all(self, records: Iterable[Record]) -> None:
        if self._as_json:
            for record in records:
                self._put_json(record)
            return
        for rows in _chunks(map(_row, records)):
            self._put_rows(rows)

    def _put_json(self, record: Record) -> None:
        text = output.json_text(record)
        if len(text) > output.LINE_MAX:  # our own cells fit; this one grew when it was escaped
            self._unread.lines += 1
        else:
            output.put(text)

    def _put_rows(self, rows: list[tuple[str, ...]]) -> None:
        if not self._widths:
            from pedos_cli.audit_text import HEADER  # noqa: PLC0415  (as above)

            if output.on_terminal():
                rows.insert(0, HEADER)
            self._widths = [0] * len(HEADER)
        for row in rows:
            self._widths = [max(pair) for pair in zip(self._widths, map(len, row), strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, self._widths, strict=True))
            output.put("  ".join(cells).rstrip())


def _row(record: Record) -> tuple[str, ...]:
    from pedos_cli.audit_text import row  # noqa: PLC0415  (as above)

    return row(record)


def _chunks(rows: Iterator[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    chunk: list[tuple[str, ...]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_ALIGNED:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# Arguments


def _path(args: argparse.Namespace) -> str:
    path: str = args.file or place.audit_file()
    return path


def _filter(args: argparse.Namespace) -> tuple[Callable[[Record], bool], str]:
    """The filters for a record, and since when, as the log writes times."""
    from pedos_cli.audit_text import is_about, is_denial  # noqa: PLC0415  (as above)

    vm = None if args.vm is None else vm_name(args.vm)
    since = "" if args.since is None else since_text(args.since)

    def wanted(record: Record) -> bool:
        return (
            str(record.get("time")) >= since
            and not (args.denied and not is_denial(record))
            and (vm is None or is_about(record, vm))
        )

    return wanted, since


def since_text(text: str) -> str:
    """Return the time that `--since` means, in UTC as the log writes it; raises UsageError."""
    from datetime import UTC, datetime, time, timedelta  # noqa: PLC0415  (only --since needs it)

    number, unit = text[:-1], text[-1:]
    try:
        if unit in UNITS and number.isascii() and number.isdigit() and len(number) <= SPAN_DIGITS:
            moment = datetime.now(UTC) - timedelta(seconds=int(number) * UNITS[unit])
        elif text in DAYS:
            day = datetime.now().date() - timedelta(days=DAYS[text])
            moment = datetime.combine(day, time()).astimezone(UTC)
        elif ":" in text[:3]:
            today = datetime.now().date()
            moment = datetime.combine(today, time.fromisoformat(text)).astimezone(UTC)
        else:
            moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"'{show(text, 64)}' is not a time: 10m, 2h and 3d mean so long ago, and today, "
            "yesterday, 14:00 (of today), 2026-01-31 or 2026-01-31T14:00 are this machine's time",
            f"{PROG} --since 2h",
        ) from None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) > TAIL_MAX:
        raise UsageError(
            f"'{show(text, 64)}' is not a number of records from 0 to {TAIL_MAX}",
            f"{PROG} list --since 2h",
        )
    return int(text)


def _guarded(path: str, records: Iterator[Record]) -> Iterator[Record]:
    """Yield the records; report errors of the log as such, apart from a full disk of the output."""
    try:
        yield from records
    except OSError as error:
        _refuse(path, error)


def _refuse(path: str, error: OSError) -> NoReturn:
    """Raise the error of the log, in words."""
    if isinstance(error, FileNotFoundError):
        raise CallError(
            "not_found",
            f"there is no audit log {path}",
            {"hint": f"{PROG} --file FILE, in dom0 (in local mode: DIR/state/audit.jsonl)"},
        ) from None
    why = (error.strerror or type(error).__name__).lower()
    hint = {"hint": "as root, or as the user that the service runs as"}
    raise CallError(
        "failed",
        f"the audit log {path} cannot be read: {why}",
        hint if isinstance(error, PermissionError) else {},
    ) from None


def _tell_unread(session: Session, unread: Unread) -> None:
    """Report how many lines were skipped since the last report."""
    if unread.lines:
        lines = "1 line is" if unread.lines == 1 else f"{unread.lines} lines are"
        session.note(f"warning: {lines} torn or not the service's, and passed over")
        unread.lines = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-audit`; returns the exit status."""
    return run(PROG, build_parser, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
