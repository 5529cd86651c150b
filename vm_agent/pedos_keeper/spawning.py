"""Starts a process by posix_spawn(3) of the C library.

Python's own holds the interpreter's lock until the program runs: a service on a file system that
does not answer would stop all calls. It also cannot have the process begin in a control group
(glibc 2.39), which is far cheaper than to move it there.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=False)
# Of glibc's <spawn.h>; the types are opaque, and have 336 and 80 bytes on 64-bit machines.
_SETSIGDEF, _SETSIGMASK, _SETSID, _SETCGROUP = 0x04, 0x08, 0x80, 0x100
_OPAQUE: Final = 1024
_SIGSET: Final = 128  # bytes of a sigset_t
_SHELL: Final = "/bin/sh"


def can_begin_in_group() -> bool:
    """Whether this C library can have a process begin in a control group."""
    return hasattr(_libc, "posix_spawnattr_setcgroup_np")


def spawn(
    path: str,
    arguments: Sequence[str],
    environment: Sequence[bytes],
    descriptors: Mapping[int, int],
    group: int | None = None,
) -> int:
    """The pid of a new process in a session of its own, with no signal blocked or ignored.

    `arguments` begin with the program's name; `environment` is as `lines_of` writes one.
    `descriptors` are those that it has, by the number there; this process's others close on exec.
    `group` is the folder of a control group, if `can_begin_in_group`. OSError if the program does
    not run.
    """
    argv = _strings([os.fsencode(each) for each in arguments])
    envp = _strings(environment)
    attributes = _without_group() if group is None else _attributes(group)
    actions = ctypes.create_string_buffer(_OPAQUE)
    _done(_libc.posix_spawn_file_actions_init(actions))
    try:
        for number, descriptor in descriptors.items():
            _done(_libc.posix_spawn_file_actions_adddup2(actions, descriptor, number))
        pid = ctypes.c_int()
        code = _libc.posix_spawn(
            ctypes.byref(pid), os.fsencode(path), actions, attributes, argv, envp
        )
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
    _done(code, path)
    return pid.value


def lines_of(environment: Mapping[str, str]) -> list[bytes]:
    """An environment as a process has it."""
    return [os.fsencode(f"{name}={value}") for name, value in environment.items()]


def as_shell_would(path: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The program and its arguments for a file that is no program to the kernel (ENOEXEC): a script
    without a first line. Shells, and execvp(3), run it with sh."""
    return _SHELL, [_SHELL, path, *arguments[1:]]


def _attributes(group: int | None) -> ctypes.Array[ctypes.c_char]:
    """They hold nothing that would have to be given back (posix_spawnattr_destroy(3))."""
    attributes = ctypes.create_string_buffer(_OPAQUE)
    _done(_libc.posix_spawnattr_init(attributes))
    flags = _SETSID | _SETSIGMASK | _SETSIGDEF
    signals = ctypes.create_string_buffer(_SIGSET)
    _libc.sigemptyset(signals)
    _done(_libc.posix_spawnattr_setsigmask(attributes, signals))
    # Python ignores some, and who starts this may have ignored others: a child would go on so.
    _libc.sigfillset(signals)
    _done(_libc.posix_spawnattr_setsigdefault(attributes, signals))
    if group is not None:
        flags |= _SETCGROUP
        _done(_libc.posix_spawnattr_setcgroup_np(attributes, group))
    _done(_libc.posix_spawnattr_setflags(attributes, ctypes.c_short(flags)))
    return attributes


@functools.cache
def _without_group() -> ctypes.Array[ctypes.c_char]:
    """The same for every process: each only reads them."""
    return _attributes(None)


def _strings(each: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(each) + 1))(*each, None)


def _done(code: int, path: str | None = None) -> None:
    """These functions return the error and leave errno alone."""
    if code:
        raise OSError(code, os.strerror(code), path)
