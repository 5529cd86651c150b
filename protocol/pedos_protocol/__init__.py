"""What is said: names, messages, codec and connection state machine, without any I/O."""

#: Of the whole project: every program tells it, and a test compares it with pyproject.toml and
#: debian/changelog. It stands here because everything imports this.
VERSION = "0.1.0"
