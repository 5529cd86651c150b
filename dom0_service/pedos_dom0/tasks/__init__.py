"""How work is run: in a thread, at a rate, and saying what it waits for."""
