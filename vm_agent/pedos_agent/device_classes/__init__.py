"""What the agent does for each class of devices: a folder a class, and one table of them."""
