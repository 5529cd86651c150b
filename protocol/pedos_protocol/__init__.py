"""The protocol: names, messages, codec and connection state machine, without any I/O."""

#: The version of the whole project: every program shows it, and a test compares it with
#: pyproject.toml and debian/changelog. It is here because everything imports this.
VERSION = "0.1.0"
