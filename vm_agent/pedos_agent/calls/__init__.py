"""Calls of services: those of programs here, and those that this VM serves."""
