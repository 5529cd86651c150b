def open_and_close(path: str, flags: int) -> None:
    """Opens and closes a file without the interpreter in between. OSError if it cannot be opened;
    blocks as long as that takes, but not other threads."""

def first_of(
    folders: tuple[str, ...], names: tuple[str, ...], follow: bool, /
) -> tuple[str, int] | None:
    """The path and the mode of the first file that is there: one of the first name in any folder
    goes before one of the next name. `follow`: a link is what it leads to. OSError if it is not
    known whether there is one."""

def plain_service(
    before: tuple[str, ...], folders: tuple[str, ...], names: tuple[str, ...], /
) -> tuple[str, int] | None:
    """What `first_of` finds in `folders`, if that is a socket, or a regular file that this user may
    execute, and there is surely none of these names in the folders `before`. None otherwise."""
