"""The agent's clients: dom0, and the VM's own command line."""
