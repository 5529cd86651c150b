"""Who asks, and what policy and dom0's user say to it."""
