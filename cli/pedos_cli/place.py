"""Whether a program runs in dom0 or in a VM, and where dom0's files are.

The environment names the files; otherwise they are those of the system that PEDOS_SOCKET names.

A user who sets PEDOS_SOCKET alone, as `pedos-local up` suggests, means that system in every
respect: commands must not show the log, or change the policy, of another one. If that system's
files are not known, commands say so.
"""

from __future__ import annotations

import os

from pedos_protocol.errors import CallError

from pedos_cli.output import show

HYPERVISOR = "/sys/hypervisor"
"""What Linux says about its hypervisor (Documentation/ABI/stable/sysfs-hypervisor-xen)."""

XENFEAT_DOM0 = 1 << 11
"""The feature bit: this domain is dom0 (xen/features.h)."""

SOCKET = "dom0.sock"
DESKTOP = "desktop"
MARK = "pedos.toml"
AUDIT = "state/audit.jsonl"
POLICY = "policy.d"
"""In a folder of local mode (pedos_dom0.local.layout; a test compares both)."""

DEFAULT_AUDIT = "/var/lib/pedos/audit.jsonl"
"""On a Xen host: in the state folder of dom0's unit (a test compares both)."""
DEFAULT_POLICY = "/run/pedos/policy.d:/etc/pedos/policy.d"


def inside_vm() -> bool:
    """Say whether this certainly runs in a VM and not in dom0 (only texts depend on it)."""
    named = os.environ.get("PEDOS_VM")  # local mode
    return named != "dom0" if named else _is_guest_of_xen()


def vm_here() -> str:
    """Return the name of this VM, as far as it is known: on Xen a VM does not learn its name, which
    is usually that of its host."""
    return os.environ.get("PEDOS_VM") or (os.uname().nodename if inside_vm() else "dom0")


def _is_guest_of_xen() -> bool:
    try:
        with open(f"{HYPERVISOR}/properties/features", encoding="ascii") as file:
            return not int(file.read(), 16) & XENFEAT_DOM0
    except (OSError, ValueError):
        return False


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
    """Return the path of `name` in the system that PEDOS_SOCKET names, or else on this host."""
    from pedos_protocol.sockets import DEFAULT_SOCKET, DESKTOP_SOCKET  # noqa: PLC0415

    socket = os.path.realpath(os.environ.get("PEDOS_SOCKET") or DEFAULT_SOCKET)
    run = os.path.dirname(socket)
    if os.path.basename(run) == DESKTOP:
        run = os.path.dirname(run)
    folder = os.path.dirname(run)
    if os.path.basename(socket) == SOCKET and os.path.isfile(os.path.join(folder, MARK)):
        return os.path.join(folder, name)
    if inside_vm():
        message = f"only dom0 has the {what}, and here is {show(vm_here())}"
        raise CallError("failed", message, {"hint": in_vm} if in_vm else {})
    if socket in (os.path.realpath(DEFAULT_SOCKET), os.path.realpath(DESKTOP_SOCKET)):
        return default
    message = f"where the system of PEDOS_SOCKET={show(socket)} has its {what} is not known"
    raise CallError("not_found", message, {"hint": unknown})
