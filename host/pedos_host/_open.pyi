def open_and_close(path: str, flags: int) -> None:
    """Opens and closes a file without the interpreter in between. OSError if it cannot be opened;
    blocks as long as that takes, but not other threads."""
