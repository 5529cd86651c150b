"""Microphones, which can be listed."""
