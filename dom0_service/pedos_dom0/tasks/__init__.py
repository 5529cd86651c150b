"""How work runs: in a thread, at a limited rate, and reporting what it waits for."""
