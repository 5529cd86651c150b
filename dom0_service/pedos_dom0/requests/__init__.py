"""The requests of clients and VMs: one file per request."""
