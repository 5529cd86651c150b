"""Reads from, and events of, the kernel and udev, for all device classes."""
