"""Facts about VMs beside those that the hypervisor tells."""
