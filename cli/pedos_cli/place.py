"""Where dom0's files stand: what the environment says, or else those of the system that
PEDOS_SOCKET names.

A user who sets PEDOS_SOCKET alone, as `pedos-local up` says, means that system in everything, and
must not be shown the log, or change the policy, of another one. Where nothing says where that one
has its files, that is said.
"""

from __future__ import annotations

import os

from pedos_protocol.errors import CallError

from pedos_cli.output import show
from pedos_cli.run import inside_vm, vm_here

SOCKET = "dom0.sock"
MARK = "pedos.toml"
AUDIT = "state/audit.jsonl"
POLICY = "policy.d"
"""In a folder of local mode (pedos_dom0.local.layout, which a test compares)."""

DEFAULT_AUDIT = "/var/lib/pedos/audit.jsonl"
"""On a Xen host: in the state folder of dom0's unit (which a test compares)."""
DEFAULT_POLICY = "/run/pedos/policy.d:/etc/pedos/policy.d"


def audit_file() -> str:
    """Return the path of the audit log; CallError if it is not known, or if only dom0 has it."""
    return os.environ.get("PEDOS_AUDIT") or _of_system(
        "audit log", AUDIT, DEFAULT_AUDIT,
        unknown="PEDOS_AUDIT=FILE (in local mode: DIR/state/audit.jsonl)",
    )  # fmt: skip


def policy_path() -> str:
    """Return the policy folders with colons between them; CallError as for the audit log."""
    return os.environ.get("PEDOS_POLICY_PATH") or _of_system(
        "policy", POLICY, DEFAULT_POLICY,
        unknown="--policy-dir DIR, or PEDOS_POLICY_PATH=DIR (in local mode: DIR/policy.d)",
        in_vm="qvm-policy explain --mine --help",
    )  # fmt: skip


def _of_system(what: str, name: str, default: str, *, unknown: str, in_vm: str = "") -> str:
    """Return where the system that PEDOS_SOCKET names, or else this host's, has `name`."""
    from pedos_cli.client import DEFAULT_SOCKET  # noqa: PLC0415  (help does without)

    socket = os.path.realpath(os.environ.get("PEDOS_SOCKET") or DEFAULT_SOCKET)
    folder = os.path.dirname(os.path.dirname(socket))
    if os.path.basename(socket) == SOCKET and os.path.isfile(os.path.join(folder, MARK)):
        return os.path.join(folder, name)
    if inside_vm():
        message = f"only dom0 has the {what}, and here is {show(vm_here())}"
        raise CallError("failed", message, {"hint": in_vm} if in_vm else {})
    if socket == os.path.realpath(DEFAULT_SOCKET):
        return default
    message = f"where the system of PEDOS_SOCKET={show(socket)} has its {what} is not known"
    raise CallError("not_found", message, {"hint": unknown})
