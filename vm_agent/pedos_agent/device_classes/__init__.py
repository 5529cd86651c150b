"""The agent's part for each device class: a folder per class, and one table of them."""
