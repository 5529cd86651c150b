"""What dom0 knows, and asks nobody: devices, leases, assignments, the agents that are connected."""
