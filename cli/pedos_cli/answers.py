"""The service's answers as text and exit statuses: errors, rules, warnings of the policy.

Every verb uses this module, which itself uses only `output` and `place`.
"""

from __future__ import annotations

import os

from pedos_protocol.errors import EXIT_STATUS, CallError, ProtocolError
from pedos_protocol.sockets import DESKTOP_GROUP, DESKTOP_SOCKET

from pedos_cli.output import show
from pedos_cli.place import inside_vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeVar

    from pedos_cli import client

    T = TypeVar("T")

DONE = 0
FAILED = 1
USAGE = EXIT_STATUS["usage"]
UNREACHABLE = EXIT_STATUS["unavailable"]
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
PIPE_CLOSED = 141  # 128 + SIGPIPE: the output has no reader any more

MESSAGE_MAX = 1000
"""Characters of a service's sentence that are shown."""


def take(answer: Mapping[str, object], key: str, kind: type[T]) -> T:
    """Return `answer[key]` if it is a `kind`; raise ProtocolError if the service sent another
    type."""
    value = answer.get(key)
    if not isinstance(value, kind):
        raise ProtocolError(f"the service's answer has no proper '{key}'")
    return value


def take_maps(answer: Mapping[str, object], key: str) -> list[dict[str, object]]:
    """Return `answer[key]` if it is a list of maps; raise ProtocolError if not."""
    values = take(answer, key, list)
    if not all(isinstance(value, dict) for value in values):
        raise ProtocolError(f"the service's answer has no proper '{key}'")
    return values


def left_out(answer: Mapping[str, object], name: str) -> int:
    """Return how many items of its list `name` did not fit into the answer."""
    count = answer.get(f"{name}_left_out")
    return count if isinstance(count, int) else 0


def error_in(result: Mapping[str, object]) -> CallError | None:
    """Return the error of one of several results; None if it has none."""
    if result.get("error") is None:
        return None
    error = take(result, "error", dict)
    return CallError(
        take(error, "code", str), take(error, "message", str), take(error, "data", dict)
    )


def older_service(error: CallError, what: str, hint: str) -> CallError:
    """Return `error`, or in place of one that a method is unknown, that the service is too old: it
    `what`. `hint` is a command that it understands."""
    if error.code != "unknown_method":
        return error
    whose = "this VM's agent, or dom0's service," if inside_vm() else "dom0's service"
    message = f"{whose} is of an older version and {what}"
    return CallError("unknown_method", message, {"hint": hint})


def error_lines(prog: str, error: CallError, see: str | None, *, verbose: bool) -> list[str]:
    """Return the lines that describe an error answer: what, why, and what to do next.

    `see` is the command that explains a denial; dom0's user sees the rule, a VM only the request
    id.
    """
    data = error.data
    # A method is a word of the protocol; the message already says what is not served here.
    word = "failed" if error.code == "unknown_method" else error.code.replace("_", " ")
    known_rule = error.code == "denied" and "rule" in data
    lines = [f"{prog}: {word}: {show(error.message, MESSAGE_MAX)}"]
    if known_rule:
        lines.append(f"  rule: {rule_text(data)}")
        if see:
            lines.append(f"  see:  {see}")
    if data.get("hint"):
        lines.append(f"  try:  {show(data['hint'])}")
    if data.get("request") and (verbose or (error.code == "denied" and not known_rule)):
        lines.append(f"  request: {show(data['request'])}")
    return lines


def options_text(options: Mapping[str, object]) -> str:
    """Return options as they are shown everywhere: `frontend-dev=xvdi, read-only=no`."""
    return ", ".join(f"{name}={options[name]}" for name in sorted(options))


def landed(answer: Mapping[str, object], asked_for: str) -> tuple[str | None, str]:
    """Return the VM that the device went to, and, if it is another than the named one, that it is;
    a VM that asked does not learn which one."""
    vm = answer.get("vm", asked_for)
    if vm is None:
        return None, "another VM, as dom0's policy wants it"
    if vm == asked_for:
        return asked_for, ""
    return show(vm), f", and not to {asked_for}, as the policy or dom0's user said"


def rule_text(data: Mapping[str, object]) -> str:
    """Return the place and text of a rule, or say that no rule matched or is needed."""
    rule, text = data.get("rule"), data.get("text")
    if not rule and data.get("verdict") == "allow":
        return "none is needed"
    if not rule:
        return "none matched (default deny)"
    return f"{show(rule)}   {show(text)}" if text else show(rule)


def policy_warning(status: object) -> str | None:
    """Return the warning about a policy file with an error, else None."""
    if not isinstance(status, dict) or status.get("ok", True):
        return None
    errors = [each for each in status.get("errors") or [] if isinstance(each, dict)]
    if errors:
        first = errors[0]
        file = show(first.get("file"))  # the kind of file: policy, or facts about VMs; or a folder
        if first.get("line"):
            where = f"{file}:{show(first['line'])} has an error"
        else:
            where = f"{file}: {show(first.get('message'))}"
        if more := len(errors) - 1 + left_out(status, "errors"):
            where += f" (and {more} more)"
    else:
        where = "the policy could not be read"
    loaded_at = status.get("loaded_at")
    stays = (
        f"the policy of {show(loaded_at)} stays in force"
        if loaded_at
        else "no policy is in force, so everything is denied"
    )
    return f"{where}, {stays} (qvm-policy status)"


def _not_a_member(prog: str) -> list[str]:
    """The lines for a user of dom0 who may use neither socket."""
    if _has_joined(DESKTOP_GROUP):
        return [
            f"{prog}: unavailable: this session began before its user became a member of the group "
            f"'{DESKTOP_GROUP}'",
            "  try:  log out, and in again",
        ]
    return [
        f"{prog}: unavailable: dom0's service answers root, and members of the group "
        f"'{DESKTOP_GROUP}'",
        f"  try:  sudo adduser $USER {DESKTOP_GROUP}, and log in again: a member may lend every "
        "device that the policy lets dom0's user lend (docs/desktop.md)",
    ]


def _has_joined(group: str) -> bool:
    """Whether this process's user is a member by now, and was not when the session began."""
    import grp  # noqa: PLC0415  (only who is refused needs them)
    import pwd  # noqa: PLC0415

    try:
        members = grp.getgrnam(group).gr_mem
        return pwd.getpwuid(os.getuid()).pw_name in members
    except KeyError:
        return False


def unreachable_lines(prog: str, error: client.Unreachable) -> list[str]:
    """Return the lines that say that no service answers, and how to start it."""
    unit = "pedos-agent" if inside_vm() else "pedos-dom0"
    if error.lost:
        return [
            f"{prog}: unavailable: {show(error.why)} before it answered: what was asked for may be "
            "done, or not",
            f"  try:  look whether it is, and at systemctl status {unit}",
        ]
    if isinstance(error.__cause__, PermissionError) and error.path == DESKTOP_SOCKET:
        return _not_a_member(prog)
    if isinstance(error.__cause__, PermissionError):
        hint = "as root, or as the user that the service runs as"
    else:
        hint = f"systemctl start {unit}  (or, in local mode: pedos-local up DIR)"
    return [
        f"{prog}: unavailable: no service answers at {show(error.path)}: {show(error.why)}",
        f"  try:  {hint}",
    ]
