"""Disks: in a folder of local mode, and those of a Xen domain."""
