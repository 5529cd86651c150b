"""All devices or assignments of a class, over as many answers of the service as they need."""

from __future__ import annotations

from pedos_protocol.names import natural_key

from pedos_cli.answers import take, take_maps
from pedos_cli.arguments import WILDCARD
from pedos_cli.pages import answered, pages_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_cli.pages import Call, Pages


TIMEOUT_S = 10.0
"""Seconds for a list: the service answers from memory and never asks a VM."""


def list_devices(
    call: Call, device_class: str, vms: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> tuple[list[dict[str, object]], list[dict[str, object]], dict[str, object]]:
    """Return the devices in natural order, the missing ones, and the last answer.

    Missing are devices that a VM has and does not report.
    """
    devices, answer = answered(call, device_pages(device_class, vms, exclude))
    missing = take_maps(answer, "missing") if "missing" in answer else []
    return devices, missing, answer


def list_assignments(
    call: Call, device_class: str, vms: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Return the assignments in natural order of source, device, identity and VM, and the last
    answer."""
    return answered(call, assignment_pages(device_class, vms, exclude))


def device_pages(
    device_class: str, vms: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> Pages:
    """Ask for the devices as `pages_of` does; they are in natural order."""
    wanted = {"device_class": device_class, "vms": vms, "exclude": list(exclude)}
    devices, answer = yield from pages_of("device.list", wanted, "devices", device_name)
    devices.sort(key=lambda each: natural_key(device_name(each)))
    return devices, answer


def assignment_pages(
    device_class: str, vms: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> Pages:
    """Ask for the assignments as `pages_of` does; they are in natural order of source, device,
    identity and VM."""
    wanted = {"device_class": device_class, "vms": vms, "exclude": list(exclude)}
    assignments, answer = yield from pages_of(
        "device.assignments", wanted, "assignments", _whole_name
    )
    assignments.sort(key=_assignment_key)
    return assignments, answer


def _whole_name(assignment: Mapping[str, object]) -> dict[str, object]:
    """Return what tells an assignment from all others."""
    return {key: assignment.get(key) for key in ("vm", "backend", "device", "identity")}


def _assignment_key(assignment: Mapping[str, object]) -> list[tuple[str, str]]:
    """Assignments to an identity at any port are last of those to a source's devices."""
    device = assignment.get("device")
    names = (
        take(assignment, "backend", str),
        "\x7f" if device is None else str(device),
        take(assignment, "identity", str),
        take(assignment, "vm", str),
    )
    return list(map(natural_key, names))


def assignment_name(assignment: Mapping[str, object], backend: str) -> str:
    """Return what an assignment is to as `SOURCE:ID[:IDENTITY]`, which `unassign` takes."""
    device, identity = assignment.get("device"), take(assignment, "identity", str)
    at = f"{backend}:{WILDCARD if device is None else device}"
    return f"{at}:{identity}" if identity else at


def device_name(device: Mapping[str, object]) -> str:
    """Return SOURCE:ID."""
    return f"{take(device, 'backend', str)}:{take(device, 'device', str)}"
