"""The menu of devices: what is there, who has it, and whom it may be attached to."""
