"""What both agents are told of an attachment when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pedos_dom0.tables.leases import Lease


def export_params(lease: Lease) -> dict[str, Any]:
    """The parameters of `export.start` (protocol: ExportStart)."""
    return {**_common(lease), "peer": lease.vm_domid, "instance": lease.instance or ""}


def import_params(lease: Lease) -> dict[str, Any]:
    """The parameters of `import.start` (protocol: ImportStart)."""
    return {
        **_common(lease),
        "peer": lease.backend_domid,
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
