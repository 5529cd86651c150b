"""dom0's knowledge of each device class: `base` is the interface, `registered` names the classes
with rules of their own."""
