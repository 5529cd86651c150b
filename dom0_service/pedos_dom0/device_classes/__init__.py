"""What dom0 needs to know of each class of devices: `base` is the seam, `registered` the table."""
