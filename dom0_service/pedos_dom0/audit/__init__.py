"""The audit log: what is written, in which order, and how much of it."""
