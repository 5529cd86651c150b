"""Local mode's own errors as sentences: what the system refused, for which file, and what helps."""

from __future__ import annotations

import errno
import os
import resource
import shlex
from typing import TYPE_CHECKING

from pedos_host.system_errors import what_is_wrong
from pedos_protocol.names import escaped_text

if TYPE_CHECKING:
    from collections.abc import Iterator

# Descriptors that a program of local mode needs by itself, and for each VM (its channels, its log).
# With three VMs it started with 32; an attached disk takes some more.
DESCRIPTORS = 64
DESCRIPTORS_A_VM = 16

_HINTS = {
    errno.EMFILE: "ulimit -n 1024",
    errno.ENFILE: "sysctl fs.file-max=1000000   (as root)",
    errno.ENOSPC: "df -h; df -i",
    errno.EACCES: "ls -ld of each folder of that path",
    errno.EROFS: "a folder that is not mounted read-only",
}


def in_words(error: OSError, where: str = "") -> str:
    """The lines about an error: what is wrong, and what to try, if anything helps."""
    return with_hint(what_is_wrong(error, where), hint_for(error))


def hint_for(error: OSError) -> str | None:
    """What to try, if anything helps."""
    return _HINTS.get(error.errno or 0)


def with_hint(message: str, hint: str | None) -> str:
    """A message and what to try, as lines for the terminal; an error answer keeps them in separate
    fields."""
    return f"{message}\n  try:  {hint}" if hint else message


def for_shell(word: str) -> str:
    """`word` quoted for a shell: if it has unprintable characters, in the way of bash and zsh."""
    if escaped_text(word) == word:
        return shlex.quote(word)
    safe = {*range(0x20, 0x7F)} - {ord("'"), ord("\\")}
    return "$'" + "".join(chr(b) if b in safe else f"\\x{b:02x}" for b in os.fsencode(word)) + "'"


def system_errors(group: BaseExceptionGroup[BaseException]) -> list[OSError] | None:
    """The errors of a group if they are all the system's, which need no traceback."""
    leaves = list(_leaves(group))
    errors = [error for error in leaves if isinstance(error, OSError)]
    return errors if len(errors) == len(leaves) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def too_few_descriptors(vms: int) -> str | None:
    """Raises this process's limit of descriptors to the needs of so many VMs; if that is not
    allowed, returns why they cannot start."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS + vms * DESCRIPTORS_A_VM
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    if most == resource.RLIM_INFINITY or most >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
        return None
    return with_hint(
        f"{most} files may be open at once, and with {vms} VMs it takes {needed}",
        _HINTS[errno.EMFILE],
    )
