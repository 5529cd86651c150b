"""An attachment in the requests to its two agents, and in their reports: the same fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pedos_protocol.device_classes import UNNAMED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pedos_protocol.messages import Device, ExportState, ImportState

    from pedos_dom0.tables.leases import Lease


def export_params(lease: Lease, *, muted: bool) -> dict[str, Any]:
    """The parameters of `export.start` (protocol: ExportStart)."""
    return {**_exported(lease), "vm": lease.vm, "muted": muted}


def import_params(lease: Lease, device: Device | None) -> dict[str, Any]:
    """The parameters of `import.start` (protocol: ImportStart), but what the source hands over.
    `device` is as the source reports it, if it does."""
    description = "" if device is None else device.description
    return {**_imported(lease), "description": description}


def stop_params(lease: Lease) -> dict[str, Any]:
    """What names the import in `import.stop` and `import.check`. An agent that does not know the
    parameter for a class has no other devices than those of the one that is meant without it."""
    params = {"attachment": lease.attachment, "frontend": lease.frontend}
    if lease.key.device_class != UNNAMED:
        params["device_class"] = lease.key.device_class
    return params


def is_exported(reported: Iterable[ExportState], lease: Lease) -> bool:
    """Whether the source reports exactly the export that the journal has."""
    expected = _exported(lease)
    if lease.instance is None:
        del expected["instance"]
    return any(_has(export, expected) for export in reported)


def is_imported(reported: Iterable[ImportState], lease: Lease) -> bool:
    """Whether the target reports exactly the import that the journal has, under its very name: that
    name is used to take it away."""
    expected = _imported(lease)
    # Whether it can be written to is for the source to enforce.
    del expected["read_only"]
    if lease.frontend is None:
        del expected["frontend"]
    return any(_has(imported, expected) for imported in reported)


def _exported(lease: Lease) -> dict[str, Any]:
    return {**_common(lease), "peer": lease.channel.peer, "instance": lease.instance or ""}


def _imported(lease: Lease) -> dict[str, Any]:
    return {
        **_common(lease),
        "peer": lease.channel.listener,
        "backend": lease.key.backend,
        "frontend": lease.frontend,
    }


def _common(lease: Lease) -> dict[str, Any]:
    return {
        "attachment": lease.attachment,
        "device_class": lease.key.device_class,
        "device": lease.key.device,
        "port": lease.port,
        "read_only": lease.options.get("read-only") == "yes",
    }


def _has(state: object, expected: Mapping[str, object]) -> bool:
    return all(getattr(state, name) == value for name, value in expected.items())
