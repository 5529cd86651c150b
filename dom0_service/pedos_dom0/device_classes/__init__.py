"""dom0's knowledge of each device class: `base` is the interface, `registered` the table."""
