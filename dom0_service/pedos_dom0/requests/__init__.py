"""What clients and VMs may ask of the service: one file a request."""
