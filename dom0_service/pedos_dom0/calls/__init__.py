"""Calls of services: which run, over which channels, and how one begins and ends."""
