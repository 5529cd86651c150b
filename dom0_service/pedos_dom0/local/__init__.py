"""Local mode: VMs as processes of one Linux machine. Not a security boundary."""
