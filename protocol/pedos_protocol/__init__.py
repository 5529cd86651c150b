"""What is said: names, messages, codec and connection state machine, without any I/O."""
