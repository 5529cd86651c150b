"""USB devices, which can be listed."""
