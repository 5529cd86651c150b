"""What the words of a rule stand for.

Matching is done with sets of words, not with predicates: `vm_tokens("work")` is every word that
means the VM work (`work`, `@anyvm`, `*`), and a rule matches when the word that stands in its
column is in that set. So a request is turned into words once, and each rule costs a look-up; that
is also what lets the snapshot be indexed by all of service, source and target.

VM_TOKENS is the one table of VM words. A word of the reference language that cannot be evaluated
yet stands in it too, so that it gets an error of its own and not "invalid".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from attrs import frozen
from pedos_protocol.names import DEVICE_CLASSES, is_vm_name, shown

ADMIN_VM = "dom0"
DEVICE_VERBS = ("list", "attach", "detach", "assign")
DEVICE_SERVICE_PREFIX = "device."

# A service name is a file name in the reference system, so it cannot be longer than one.
SERVICE_MAX = 255
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")

# Distinct (VM, service) words per running system are few; the bound only keeps a flood of
# made-up names from growing the memory.
TOKEN_CACHE = 1024


@frozen
class VmToken:
    """One kind of VM word. `stands_for` is None for a kind that is not evaluated yet."""

    form: str
    meaning: str
    stands_for: Callable[[str], bool] | None
    takes_value: bool = False

    def covers(self, text: str) -> bool:
        return text.startswith(self.form) if self.takes_value else text == self.form


VM_TOKENS = (
    VmToken("*", "every VM and dom0", lambda vm: True),
    VmToken("@anyvm", "every VM but dom0", lambda vm: vm != ADMIN_VM),
    VmToken("@adminvm", "dom0", lambda vm: vm == ADMIN_VM),
    VmToken("@tag:", "the VMs with a tag", None, takes_value=True),
    VmToken("@type:", "the VMs of a type", None, takes_value=True),
    VmToken("@dispvm:", "a new disposable of a template", None, takes_value=True),
    VmToken("@dispvm", "a new disposable", None),
    VmToken("@default", "no VM named by the caller", None),
    VmToken("uuid:", "the VM with a UUID", None, takes_value=True),
)

_SUPPORTED = ", ".join(token.form for token in VM_TOKENS if token.stands_for is not None)


def vm_token_problem(text: str) -> str | None:
    """Why `text` cannot stand in a VM column, or None when it can."""
    for token in VM_TOKENS:
        if token.covers(text):
            if token.stands_for is not None:
                return None
            return f"{token.form} ({token.meaning}) is not supported yet; {_right_vm()}"
    if is_vm_name(text):
        return None
    kind = "VM word" if text.startswith("@") else "VM name"
    return f"{shown(text)} is not a {kind}; {_right_vm()}"


def _right_vm() -> str:
    return f"write a VM's name or one of {_SUPPORTED}"


@lru_cache(maxsize=TOKEN_CACHE)
def vm_tokens(vm: str) -> frozenset[str]:
    """Every word that stands for the VM named `vm`."""
    return frozenset(
        {vm, *(t.form for t in VM_TOKENS if t.stands_for is not None and t.stands_for(vm))}
    )


@lru_cache(maxsize=TOKEN_CACHE)
def service_tokens(service: str) -> tuple[str, ...]:
    """Every word that stands for `service`, most particular first."""
    parts = device_service(service)
    if parts is None:
        return (service, "*")
    verb, device_class = parts
    return (service, f"device.{verb}.*", f"device.*.{device_class}", "device.*.*", "*")


def device_service(service: str) -> tuple[str, str] | None:
    """(verb, class) of `device.VERB.CLASS`; None for anything else, and for what has a `*`."""
    parts = service.split(".")
    if len(parts) == 3 and parts[0] == "device":
        verb, device_class = parts[1:]
        if verb in DEVICE_VERBS and device_class in DEVICE_CLASSES:
            return verb, device_class
    return None


def service_problem(text: str) -> str | None:
    """Why `text` cannot stand in the service column, or None when it can."""
    if text == "*":
        return None
    if len(text) > SERVICE_MAX:
        return f"service name of {len(text)} characters; at most {SERVICE_MAX} are allowed"
    if text.startswith(DEVICE_SERVICE_PREFIX):
        return _device_service_problem(text)
    if "*" in text:
        return (
            f"{shown(text)}: a service is '*' alone or a full name;"
            " only device.VERB.CLASS takes '*' for a part"
        )
    if not _SERVICE.fullmatch(text):
        return f"{shown(text)} is not a service; only A-Z a-z 0-9 . _ - are allowed"
    return None


def _device_service_problem(text: str) -> str | None:
    parts = text.split(".")
    if len(parts) != 3:
        return f"{shown(text)}: a device service has three parts, device.VERB.CLASS"
    for what, part, known in (
        ("verb", parts[1], DEVICE_VERBS),
        ("class", parts[2], DEVICE_CLASSES),
    ):
        if part != "*" and part not in known:
            return f"{shown(text)}: no device {what} {shown(part)}; use {', '.join(known)} or *"
    return None
