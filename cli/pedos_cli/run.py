"""What every program here does around its one verb: parse, run, report errors, exit.

A verb gets a `Session` and returns an exit status. It raises errors; only this module turns them
into text and statuses, so no program ends in a traceback or without an answer.
"""

from __future__ import annotations

import os
import sys

from pedos_protocol.errors import EXIT_STATUS, CallError, LocalProtocolError, ProtocolError

from pedos_cli import output
from pedos_cli.answers import (
    DONE,
    FAILED,
    INTERRUPTED,
    MESSAGE_MAX,
    PIPE_CLOSED,
    UNREACHABLE,
    USAGE,
    error_lines,
    policy_warning,
    unreachable_lines,
)
from pedos_cli.arguments import UsageError, verbosity
from pedos_cli.output import complain, put, show
from pedos_cli.place import inside_vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from pedos_cli import client
    from pedos_cli.arguments import Parser

DEBUG = 2
"""Verbosity (-v -v) from which an internal error shows its traceback."""

STATUS_TIMEOUT_S = 5.0
"""Seconds for the question whether the policy is whole, which must not delay the command."""


class Session:
    """One run of one program: its arguments, its connection, and how much it prints."""

    args: argparse.Namespace  # once they are parsed

    def __init__(self, prog: str) -> None:
        self.prog = prog
        self.verbosity = 0
        self.is_verb_over = False  # it has returned a status, which is its own
        self.done: list[str] = []
        self.unwritten: OSError | None = None
        self._client: client.Client | None = None

    def take_arguments(self, args: argparse.Namespace) -> None:
        """Take what the command line says."""
        self.args = args
        self.verbosity = verbosity(args)

    def call(self, method: str, params: dict[str, object], timeout: float) -> dict[str, object]:
        """Ask the service and return its answer; `timeout` in seconds.

        Raises CallError for an error answer and client.Unreachable when there is no service.
        """
        return self._connected().call(method, params, timeout)

    def follow(self, method: str, params: dict[str, object], timeout: float) -> dict[str, object]:
        """As `call`, for an answer that is only for standard output: BrokenPipeError as soon as
        nothing reads that any more."""
        connected = self._connected()
        connected.only_for_output = True
        return connected.call(method, params, timeout)

    def operate(
        self, method: str, params: dict[str, object], timeout: float, what: str, look: str
    ) -> dict[str, object]:
        """As `call`, for an operation that changes something and may take long: `what` is in
        progress, and continues when this is interrupted; `look` is the command that shows how it
        ended."""
        from pedos_cli.waiting import Wait  # noqa: PLC0415  (only who changes something waits)

        connected = self._connected()
        with Wait(self.note, what, look) as wait:
            return connected.call(method, params, timeout, wait.told)

    def _connected(self) -> client.Client:
        if self._client is None or self._client.closed:
            self._client = _client().connect()
        return self._client

    def say(self, line: str) -> None:
        """Report that something was done; silent with -q. A failure to print must neither stop the
        next step nor look like a failure of the work: `tell_unwritten`."""
        if self.verbosity >= 0:
            self.did(line, lambda: put(line))

    def did(self, line: str, write: Callable[[], None]) -> None:
        """Note that the action in `line` was done, and `write` it in another form, such as JSON."""
        self.done.append(line)
        try:
            write()
        except OSError as error:
            self.unwritten = error

    def tell_unwritten(self, error: OSError) -> None:
        """Report on standard error what was done and could not be printed on standard output."""
        why = error.strerror or type(error).__name__
        complain(f"{self.prog}: standard output takes nothing ({why}), but this is done:")
        for line in self.done:
            complain(f"  {line.strip()}")

    def note(self, line: str) -> None:
        """Print something beside the answer on standard error; silent with -q."""
        if self.verbosity >= 0:
            complain(f"{self.prog}: {line}")

    def fail(self, error: CallError, see: str | None = None) -> int:
        """Print the error of a call and return its exit status."""
        for line in error_lines(self.prog, error, see, verbose=self.verbosity > 0):
            complain(line)
        return EXIT_STATUS.get(error.code, FAILED)

    def refused(self, error: CallError, see: str | None = None) -> int:
        """As `fail`, for a request that policy decides about: it was perhaps denied by a rule that
        was just edited and has an error."""
        status = self.fail(error, see)
        if error.code == "denied":
            self.warn_of_policy()
        return status

    def tell_beside(self, answer: Mapping[str, object]) -> None:
        """Print what such a request's answer says beside its result."""
        if self.verbosity > 0 and answer.get("request"):
            self.say(f"request: {answer['request']}")
        if answer.get("policy_ok") is False:
            self.warn_of_policy()

    def warn_of_policy(self, status: object = None) -> None:
        """Warn of a policy file with an error, because the policy in force then differs from the
        files.

        Without `status`, ask the service; it answers only dom0, and a VM gets nothing.
        """
        if self.verbosity < 0 or inside_vm():
            return
        if status is None:
            # The work is done by now: no error here may turn it into a failure.
            try:
                answer = self.call("service.status", {}, STATUS_TIMEOUT_S)
            except (CallError, ProtocolError, _client().Unreachable):
                return
            status = answer.get("policy")
        warning = policy_warning(status)
        if warning:
            self.note(f"warning: {warning}")

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None


def run(
    prog: str,
    build_parser: Callable[[], Parser],
    argv: Sequence[str] | None = None,
    parse: Callable[[Sequence[str]], argparse.Namespace] | None = None,
    failure: int | None = None,
) -> int:
    """Run one program and return its exit status.

    The arguments' `verb` is the function to run. `parse` is for programs that look at the words
    before their parser does. `failure` is the status of whatever fails here, for a program whose
    verb returns another one's status: it is to be told from that. This is the one handler of errors
    for every program.
    """
    if "_ARGCOMPLETE" in os.environ:
        from pedos_cli.completion import complete  # noqa: PLC0415  (only a shell's Tab needs it)

        return complete(build_parser())
    if parse is None:
        parse = build_parser().parse_args
    argv = sys.argv[1:] if argv is None else argv
    session = Session(prog)
    status = failed = FAILED if failure is None else failure
    try:
        try:
            status = _run_verb(session, parse, argv)
            status = status if session.is_verb_over or failure is None else failure
        except SystemExit as leaving:  # argparse after --help
            status = leaving.code if isinstance(leaving.code, int) else DONE
        if session.unwritten is not None:
            raise session.unwritten
        output.finish()
    except KeyboardInterrupt as told:
        status = getattr(told, "status", INTERRUPTED)
    except OSError as error:
        output.abandon()
        if session.done:
            session.tell_unwritten(error)  # and the status stays that of the work
        elif isinstance(error, BrokenPipeError):
            status = PIPE_CLOSED
        else:
            status = failed
            complain(f"{prog}: failed: {error.strerror or type(error).__name__}")
    except Exception as error:
        if _asks_for_traceback(argv):
            import traceback  # noqa: PLC0415

            for line in traceback.format_exc().splitlines():
                complain(line)
        status = failed
        complain(f"{prog}: internal error: {type(error).__name__}: {show(error)}")
    return status


def _run_verb(
    session: Session, parse: Callable[[Sequence[str]], argparse.Namespace], argv: Sequence[str]
) -> int:
    prog = session.prog
    try:
        session.take_arguments(parse(argv))
        verb: Callable[[Session], int] = session.args.verb
        status = verb(session)
        session.is_verb_over = True
        return status
    except UsageError as error:
        complain(f"{prog}: usage: {show(error.message, MESSAGE_MAX)}")
        known = getattr(getattr(session, "args", None), "help_command", None)
        complain(f"  try:  {show(error.hint or known or f'{prog} --help')}")
        return USAGE
    except CallError as error:
        return session.fail(error)
    except SystemExit:  # after --help; handled here so that the cases below are not tried for it
        raise
    except _client().Unreachable as error:
        for line in unreachable_lines(prog, error):
            complain(line)
        return UNREACHABLE
    except LocalProtocolError as error:
        complain(f"{prog}: failed: the request cannot be sent: {show(error)}")
        return FAILED
    except ProtocolError as error:
        complain(f"{prog}: failed: the service's answer cannot be understood: {show(error)}")
        return FAILED
    finally:
        session.close()


def _client() -> ModuleType:
    # Imported only by commands that call the service: help and usage errors start faster without.
    from pedos_cli import client  # noqa: PLC0415

    return client


def _asks_for_traceback(argv: Sequence[str]) -> bool:
    # By hand, because the parsing itself may have failed.
    count = 0
    for word in argv:
        if word == "--verbose":
            count += 1
        elif word.startswith("-v") and set(word[1:]) == {"v"}:
            count += len(word) - 1
    return count >= DEBUG
