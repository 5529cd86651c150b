"""PCI devices, which can be listed."""
