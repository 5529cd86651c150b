"""The settings of a VM: the devices that are assigned to it."""
