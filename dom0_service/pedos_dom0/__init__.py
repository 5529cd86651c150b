"""The mediator in dom0: policy, device registry, leases, assignments and audit."""

from pedos_protocol import VERSION

# What the service calls itself in its hello.
PROGRAM = f"pedos-dom0 {VERSION}"
