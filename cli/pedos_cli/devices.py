"""All devices of a class, over as many answers of the service as they need."""

from __future__ import annotations

from pedos_protocol.names import natural_key

from pedos_cli.answers import take, take_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Call = Callable[[str, dict[str, object]], dict[str, object]]


def list_devices(
    call: Call, device_class: str, vms: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> tuple[list[dict[str, object]], list[dict[str, object]], dict[str, object]]:
    """Return the devices in natural order, the missing ones, and the last answer.

    An answer holds some hundred devices and says whether more follow its last one. Missing are
    devices that a VM has and does not report.
    """
    wanted = {"device_class": device_class, "vms": vms, "exclude": list(exclude)}
    devices: list[dict[str, object]] = []
    after = None
    while True:
        answer = call("device.list", {**wanted, "after": after})
        page = take_maps(answer, "devices")
        devices += page
        if answer.get("more") is not True or not page:
            break
        after = device_name(page[-1])
    devices.sort(key=lambda each: natural_key(device_name(each)))
    missing = take_maps(answer, "missing") if "missing" in answer else []
    return devices, missing, answer


def device_name(device: Mapping[str, object]) -> str:
    """Return SOURCE:ID."""
    return f"{take(device, 'backend', str)}:{take(device, 'device', str)}"
