"""The policy to read: which rule decides, what is wrong with its files, what was decided."""
