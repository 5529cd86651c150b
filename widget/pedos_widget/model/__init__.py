"""What the desktop shows, computed from what the service tells: no Qt, no I/O."""
