"""The devices that this VM lends and borrows now."""
