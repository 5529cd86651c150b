"""Starts a process by posix_spawn(3) (`native/host/spawn.c`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pedos_host import _spawn

_SHELL: Final = "/bin/sh"

can_begin_in_group = _spawn.can_begin_in_group
reap = _spawn.reap


def spawn(
    path: str,
    arguments: Sequence[str],
    environment: Sequence[str | bytes],
    descriptors: Sequence[int],
    group: int | None = None,
) -> tuple[int, int]:
    """The pid of a new process in a session of its own, with no signal blocked or ignored; and its
    pidfd. Nobody may reap it meanwhile, as an unknown child.

    `arguments` begin with the program's name; `environment` is lines, as `lines_of` writes
    them.
    `descriptors` are those that it has, from 0 on; this process's others close on exec. `group` is
    the folder of a control group, if `can_begin_in_group`. OSError if the program does not run.
    """
    group = -1 if group is None else group
    return _spawn.spawn(path, tuple(arguments), tuple(environment), tuple(descriptors), group)


def lines_of(environment: Mapping[str, str]) -> list[str]:
    """An environment as a process has it."""
    return [f"{name}={value}" for name, value in environment.items()]


def as_shell_would(path: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The program and its arguments for a file that is no program to the kernel (ENOEXEC): a script
    without a first line. Shells, and execvp(3), run it with sh."""
    return _SHELL, [_SHELL, path, *arguments[1:]]
