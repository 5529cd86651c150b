"""Who asks, and how policy and dom0's user decide."""
