"""What this VM lends and borrows now."""
