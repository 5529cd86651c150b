"""Hypervisor drivers: how dom0 learns of VMs, starts and stops them, and reaches their agents."""
