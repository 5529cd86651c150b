"""Who speaks to the agent: dom0, and the VM's own command line."""
