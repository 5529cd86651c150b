"""The alternatives, each as it ships, for the same job as our own stack.

`python -m benchmarks.peers.NAME IN_FLIGHT CALLS` starts its own server, calls `echo` with a map of
one text of 40 characters, and prints seconds per call. They run in an environment of their own.
"""
