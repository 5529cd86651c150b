"""What dom0 knows without asking: devices, leases, assignments, connected agents."""
