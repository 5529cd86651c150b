"""The ends of the service: the agents' control channels and the local socket."""
