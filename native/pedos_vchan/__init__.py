"""The transport: the ring in C, and trio streams over it."""
