"""The audit log: its lines, their order, and their number."""
