"""The mediator in dom0: policy, device registry, leases, assignments and audit."""

from pedos_protocol import VERSION

# The service's name in its hello.
PROGRAM = f"pedos-dom0 {VERSION}"
