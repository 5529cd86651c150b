"""The keeper: runs the services of one user of a VM for the VM's agent."""
