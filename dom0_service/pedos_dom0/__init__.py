"""The mediator in dom0: policy, device registry, leases, assignments and audit."""

__version__ = "0.1.0"

# What the service calls itself in its hello.
PROGRAM = f"pedos-dom0 {__version__}"
