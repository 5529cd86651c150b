def can_begin_in_group() -> bool:
    """Whether this C library can have a process begin in a control group."""

def reap(which: int, /) -> tuple[int, int]:
    """As `os.waitpid` with WNOHANG. It waits for nothing, and keeps the interpreter's lock: to get
    that back takes longer where many threads run."""

def spawn(
    path: str,
    arguments: tuple[str, ...],
    environment: tuple[str | bytes, ...],
    descriptors: tuple[int, ...],
    group: int,
    /,
) -> tuple[int, int]:
    """The pid of a new process in a session of its own, with no signal blocked or ignored, whose
    descriptors from 0 on are these; and its pidfd. `group` is the folder of its control group, -1
    for none. OSError if the program does not run; blocks as long as that takes, but not other
    threads. Nobody may reap children meanwhile."""
