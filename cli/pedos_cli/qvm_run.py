"""`qvm-run`: runs a command, or calls a service, in a VM from dom0.

It writes the command line of `qvm-call` and becomes that program, which carries the streams; so its
exit status is the command's.
"""

from __future__ import annotations

import os
import sys
from shlex import join, quote

from pedos_protocol.errors import CallError
from pedos_protocol.names import is_service_argument, is_service_name, is_user_name

from pedos_cli.answers import MESSAGE_MAX
from pedos_cli.arguments import Parser, UsageError, examples, vm_name
from pedos_cli.output import complain, show
from pedos_cli.place import inside_vm, vm_here
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pedos_cli.run import Session

PROG = "qvm-run"
CALL = "qvm-call"

SHELL = "qubes.VMShell"
"""The service that reads a shell's commands from its standard input (package pedos-qrexec)."""
IN_SESSION = f"{SHELL}+WaitForSession"
"""The same, once the user has a session."""

FAILURE = 125
"""The exit status of what fails here, wrong usage too, as of `qvm-call`: others are the
command's."""

STATUS_FD = 3
"""The descriptor on which `qvm-call` is asked to say what became of the call."""
TOLD_MAX = 65536
"""Bytes that are read of it: two lines of a few sentences."""


def build_parser() -> Parser:
    """Return the parser of `qvm-run`."""
    parser = Parser(
        prog=PROG,
        description="Run a shell command in a VM, or call one of its services, from dom0. The VM "
        "is started if it does not run. Without --pass-io the command reads nothing, and what it "
        "writes is thrown away; in each case the exit status is the command's, and 125 if the call "
        "or this program failed, 126 if it was refused, 127 if the VM has no such service.",
        epilog=examples(
            (f"{PROG} -p work 'ls ~'", "what it writes comes here"),
            (f"{PROG} -p work -- ls 'a file'", "words as they are, without a shell's quotes"),
            (f"{PROG} work firefox", "start it, and wait for its end"),
            (f"{PROG} -u root -p sys-usb 'cat /proc/mounts'", "as another user of the VM"),
            (f"{PROG} -p --service vault app.Sign+key <file >signed", "call a service"),
            (
                f"{PROG} -p --localcmd 'tar -x' work 'tar -c Documents'",
                "a command here at the other end of both pipes",
            ),
        ),
    )
    parser.add_argument("vm", metavar="VM", nargs="?", help="the VM that runs the command")
    parser.add_argument(
        "words", metavar="COMMAND", nargs="*",
        help="a shell command, or with --service SERVICE[+ARGUMENT]; of several words none is a "
        "shell's to interpret, and those behind `--` are no options",
    )  # fmt: skip
    parser.add_argument(
        "-p", "--pass-io", action="store_true",
        help="connect standard input, output and error with the command's",
    )  # fmt: skip
    parser.add_argument("-u", "--user", metavar="USER", help="run it as this user of the VM")
    parser.add_argument(
        "--service", action="store_true", help="COMMAND is a service to call, with its argument"
    )
    parser.add_argument(
        "--localcmd", metavar="LOCAL",
        help="with --pass-io: a shell command here, whose standard input and output are joined to "
        "those of the command there",
    )  # fmt: skip
    parser.add_argument(
        "--gui", action="store_true", help="wait until the user has a session in the VM"
    )
    parser.add_argument(
        "--no-gui", action="store_true", help="do not wait for a session (the default)"
    )
    parser.add_argument(
        "--filter-escape-chars", action="store_true",
        help="replace what could control a terminal (the default where the output is one)",
    )  # fmt: skip
    parser.add_argument("--no-filter-escape-chars", action="store_true", help="never replace it")
    parser.add_argument(
        "--dispvm", action="store_true", help="not there yet: a new disposable VM for the command"
    )
    parser.set_defaults(verb=run_command)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; raises UsageError, or SystemExit after showing help. Words behind `--`
    are the command's, whatever they look like."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    args = build_parser().parse_args(words[:at])
    named = [*([] if args.vm is None else [args.vm]), *args.words, *words[at + 1 :]]
    if len(named) < 2:
        raise UsageError("a VM and a command are needed", f"{PROG} --help")
    args.vm, *args.words = named
    return args


def run_command(session: Session) -> int:
    """Become `qvm-call`, or wait for it where its streams lead nowhere."""
    words = call_line(session)
    program = os.path.join(os.path.dirname(sys.executable), CALL)
    try:
        if session.args.pass_io:
            os.execv(program, [PROG, *words])  # noqa: S606 - no shell is wanted
        return run_silently(session, program, words)
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise CallError("failed", f"{program} cannot be started: {why}") from None


def call_line(session: Session) -> list[str]:
    """Return the arguments of `qvm-call`."""
    args = session.args
    if args.dispvm:
        message = "there are no disposable VMs yet, so --dispvm cannot make one"
        raise CallError("failed", message, {"hint": f"{PROG} -p VM COMMAND"})
    if inside_vm():
        message = f"{PROG} is for dom0, and here is {show(vm_here())}"
        raise CallError("failed", message, {"hint": f"{CALL} VM SERVICE"})
    if args.localcmd is not None and not args.pass_io:
        raise UsageError("--localcmd needs --pass-io: it is the other end of the command's streams")
    words = filters(args)
    if args.user is not None:
        if not is_user_name(args.user):
            raise UsageError(f"'{show(args.user, 64)}' is not a user's name")
        words += ["--user", args.user]
    if args.service:
        service = service_name(args.words)
    else:
        service = IN_SESSION if args.gui else SHELL
        words += ["--prefix-data", shell_line(args.words)]
    words += [vm_name(args.vm), service]
    if args.localcmd is not None:
        words += ["--", "/bin/sh", "-c", args.localcmd]
    return words


def run_silently(session: Session, program: str, words: Sequence[str]) -> int:
    """Run `qvm-call` with streams that lead nowhere, and print what it says of the call itself."""
    reader, writer = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    streams = [(os.POSIX_SPAWN_DUP2, nothing, number) for number in range(3)]
    streams.append((os.POSIX_SPAWN_DUP2, writer, STATUS_FD))
    argv = [PROG, "--status-fd", str(STATUS_FD), *words]
    pid = os.posix_spawn(program, argv, os.environ, file_actions=streams)
    os.close(writer)
    with open(reader, "rb") as told:
        lines = told.read(TOLD_MAX).splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        raise CallError("failed", f"{CALL} was ended by signal {-status}")
    told_ends = [tell(session, line) for line in lines]
    if not any(told_ends):  # only wrong usage, or a fault, ends it without such a line
        raise CallError("failed", f"{CALL} ended with status {status}, and did not say why")
    return status


def tell(session: Session, line: bytes) -> bool:
    """Print what a line of `qvm-call --status-fd` says of a call that came to no end of its own;
    return whether it is about the end."""
    from json import loads  # noqa: PLC0415  (only a call whose streams lead nowhere needs it)

    try:
        told = loads(line)
    except ValueError:
        return False
    if not isinstance(told, dict) or told.get("event") != "ended":
        return False
    if not told.get("text"):
        return True
    complain(f"{PROG}: {show(told['text'], MESSAGE_MAX)}")
    for label, name in (("rule: ", "rule"), ("try:  ", "hint"), ("request: ", "request")):
        if told.get(name) and session.verbosity >= 0:
            complain(f"  {label}{show(told[name])}")
    return True


def filters(args: argparse.Namespace) -> list[str]:
    """Return the options about what could control a terminal."""
    if args.filter_escape_chars and args.no_filter_escape_chars:
        raise UsageError("--filter-escape-chars contradicts --no-filter-escape-chars")
    if args.filter_escape_chars:
        return ["-t", "-T"]
    if args.no_filter_escape_chars:
        return ["--no-filter-escape-chars-stdout", "--no-filter-escape-chars-stderr"]
    return []


def service_name(words: Sequence[str]) -> str:
    """Return SERVICE[+ARGUMENT] if it is one; raise UsageError with the reason if not."""
    named, *more = words
    if more:
        raise UsageError(
            f"a service has one argument, which its name contains: {show(named, 64)}+"
            f"{show(more[0], 64)}"
        )
    service, plus, argument = named.partition("+")
    if not is_service_name(service) or not is_service_argument(plus + argument or "+"):
        raise UsageError(
            f"'{show(named, 128)}' is not SERVICE[+ARGUMENT]: letters, digits, '.', '_' and '-', "
            "and a '+' in front of the argument"
        )
    return named


def shell_line(words: Sequence[str]) -> str:
    """Return what the shell in the VM reads: the command, and then its own end. What comes after
    that is the command's input, as a shell reads no further than the line's end."""
    command = words[0] if len(words) == 1 else join(words)
    # As one word, so that the command ends where it ends for `sh -c`: it may be empty or a comment,
    # end with a backslash, or lack a quote.
    return f"eval {quote(command)}; exit\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-run`; returns the exit status, if it does not become another program."""
    return run(PROG, build_parser, argv, parse, FAILURE)


if __name__ == "__main__":
    sys.exit(main())
