"""What is known of the VMs beside what the hypervisor says."""
