"""The command line: qvm-device and its family, blocking clients of the local socket."""
