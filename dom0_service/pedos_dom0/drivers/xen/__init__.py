"""Xen, with xl as its toolstack."""
