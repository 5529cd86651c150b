"""Finds, reads and writes policy files; a crash leaves the old file or the new one.

The last of the policy folders is the administrator's, and the only one that is written to. This
module does not know the policy language: the caller passes in a check of the whole policy, which
runs under the same lock.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from pedos_protocol.errors import CallError

from pedos_cli import place
from pedos_cli.arguments import UsageError
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pedos_cli.arguments import Parser

SUFFIX = ".policy"
FILE_MAX = 4 * 1024 * 1024
"""Bytes of a file to read: as many as the service accepts."""

FOLDERS_MAX = 16
"""Policy folders of one command; the system has two."""

LOCK = ".lock"
"""In a policy folder: hidden, so that no loader looks into it."""
LOCK_PATIENCE_S = 5.0
"""Seconds to wait for another writer, which holds the lock for the time of one check."""
LOCK_PAUSE_S = 0.05

NEW_MODE = 0o644
"""The mode of a new file, less the umask: policy is no secret within dom0."""

NEW, ANY = "new", "any"
HASH = "sha256:"
NAME_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz_.-")
INCLUDED_CHARACTERS = NAME_CHARACTERS | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ+")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_HEX = frozenset("0123456789abcdef")


def step(name: str) -> None:
    """Mark a step of a change. This does nothing: tests end the process here."""


def add_folder_option(parser: Parser) -> None:
    """Add `--policy-dir`."""
    parser.add_argument(
        "--policy-dir", metavar="DIR", action="append", dest="folders",
        help="a policy folder, instead of those that PEDOS_POLICY_PATH names, or those of "
        "PEDOS_SOCKET's system; given several times, the first has precedence and commands write "
        "to the last",
    )  # fmt: skip


def folders(args: argparse.Namespace) -> list[str]:
    """Return the policy folders, the first of which has precedence; UsageError if too many.

    CallError if no folder is named and none is known, as in a VM.
    """
    given: list[str] = list(args.folders or ())
    if not given:
        given = [part for part in place.policy_path().split(":") if part]
    if len(given) > FOLDERS_MAX:
        raise UsageError(f"{len(given)} policy folders are given, and {FOLDERS_MAX} is the most")
    return given


def file_name(text: str) -> str:
    """Return `text` if it is valid as the name of a policy file; raise UsageError with the reason
    if not.

    A path such as `include/common` names a file that others include.
    """
    parts = text.split("/")
    if len(parts) > 1:
        if all(part and part[0] != "." and set(part) <= INCLUDED_CHARACTERS for part in parts):
            return text
    elif text.endswith(SUFFIX) and set(text) <= NAME_CHARACTERS and not text.startswith("."):
        return text
    hint = None
    meant = parts[-1].lower().removesuffix(SUFFIX)
    if meant and set(meant) <= NAME_CHARACTERS and not meant.startswith("."):
        hint = f"the name {meant}{SUFFIX}"
    raise UsageError(
        f"'{show(text, 64)}' is not a policy file's name: 0-9 a-z _ . - and {SUFFIX} at the end, "
        "as in 30-user.policy",
        hint,
    )


def digest(data: bytes) -> str:
    """Return `sha256:` and the hash of `data`: what `replace` and `remove` take."""
    import hashlib  # noqa: PLC0415  (imported only where it is needed)

    return HASH + hashlib.sha256(data).hexdigest()


def token(text: str) -> str:
    """Return `text` if it names what to replace; raise UsageError if not."""
    if text in (NEW, ANY):
        return text
    if text.startswith(HASH) and len(text) == len(HASH) + 64 and set(text[len(HASH) :]) <= _HEX:
        return text
    if len(text) == 64 and set(text) <= _HEX:
        raise UsageError("a hash is written with its kind before it", HASH + text)
    raise UsageError(
        f"'{show(text, 80)}' does not say what is replaced: it is {HASH} and 64 hexadecimal "
        f"digits (of the file as you know it), '{NEW}' (there is none yet) or '{ANY}'",
        "qvm-policy get NAME --sha256",
    )


def read_input(path: str) -> bytes | None:
    """Return the content of a file that the user names; None if it does not exist.

    It may be a pipe, such as a shell's `<(...)`; this waits for it. Raises like `read`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(path, "cannot be read", error) from error
    try:
        return _read_all(fd, path)
    except OSError as error:
        raise _failed(path, "cannot be read", error) from error
    finally:
        os.close(fd)


def require_writable(folder: str) -> None:
    """Raise CallError if no file could be written in `folder`: better before the work than
    after."""
    if not os.path.isdir(folder):
        message = f"there is no policy folder {folder}"
        raise CallError("failed", message, {"hint": _folder_hint(folder)})
    if not os.access(folder, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        why = "Read-only file system" if is_read_only else "Permission denied"
        message = f"nothing can be written in {folder}: {why}"
        raise CallError("failed", message, {} if is_read_only else {"hint": _PERMISSION_HINT})


def read(path: str) -> bytes | None:
    """Return the content of the file at `path`, None if there is none.

    Raises CallError if it cannot be read, is too large, or is no regular file. Never waits for a
    FIFO's writer.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(path, "cannot be read", error) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CallError("failed", f"{path} is not a regular file")
        return _read_all(fd, path)
    except OSError as error:
        raise _failed(path, "cannot be read", error) from error
    finally:
        os.close(fd)


def _read_all(fd: int, path: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
        size += len(chunk)
        if size > FILE_MAX:
            raise CallError("failed", f"{path} has more than {FILE_MAX} bytes: is it a policy?")
    return b"".join(chunks)


def names(folder: str) -> list[str]:
    """Return the policy files' names in `folder` in the order in which they are read.

    Raises CallError if the folder cannot be read.
    """
    try:
        found = os.listdir(folder)
    except OSError as error:
        raise _failed(folder, "cannot be read", error) from error
    return sorted(
        (name for name in found if name.endswith(SUFFIX) and not name.startswith(".")),
        key=os.fsencode,
    )


def find(where: Sequence[str], name: str) -> str | None:
    """Return the path of the file `name` that counts: the one in the first folder that has it.

    Raises CallError if a folder may not be looked into.
    """
    for folder in where:
        path = os.path.join(folder, name)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _failed(path, "cannot be read", error) from error
        return path
    return None


def change(
    folder: str,
    name: str,
    data: bytes | None,
    expected: str,
    check: Callable[[], None],
) -> None:
    """Put `data` in place of the file `name` in `folder`; None removes the file.

    `expected` is the required old content: a hash, `new` for no file, or `any`. `check` raises if
    the resulting policy must not be written. All of this happens under the folder's lock, and in
    one rename: an interruption leaves the old file or the new one. Raises CallError `busy` if the
    old content is not `expected`, and `failed` if the file cannot be written.
    """
    # Follow a symbolic link and write its target: the link is the administrator's choice.
    path = os.path.realpath(os.path.join(folder, name))
    lock = _lock(folder)
    try:
        step("locked")
        if data is not None or expected != ANY:  # even an unreadable file can be removed
            _compare(path, name, expected)
        check()
        step("checked")
        try:
            if data is None:
                if not os.path.lexists(os.path.join(folder, name)):
                    raise CallError(
                        "not_found", f"there is no {name} in {folder}", {"hint": "qvm-policy get"}
                    )
                os.unlink(os.path.join(folder, name))
                step("unlinked")
                _sync_folder(folder)
            else:
                _write(path, name, data, expected)
        except FileNotFoundError as error:
            parent = os.path.dirname(path)
            message = f"{path} cannot be written: there is no folder {parent}"
            raise CallError("failed", message, {"hint": f"mkdir -p {parent}"}) from error
        except OSError as error:
            raise _failed(path, "cannot be written", error) from error
        step("done")
    finally:
        os.close(lock)


def _lock(folder: str) -> int:
    """Return the descriptor that holds the lock, which ends with the descriptor, also after a kill.

    The lock is on a subfolder that is closed to others: locking takes only the right to read, and
    all users may read the policy. Only users who may write to the folder can delete the subfolder.
    """
    import fcntl  # noqa: PLC0415

    path = os.path.join(folder, LOCK)
    try:
        fd = _open_lock(folder)
    except OSError as error:
        raise _failed(folder, "cannot be written to", error) from error
    if os.fstat(fd).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.close(fd)
        message = f"{path} is open to other users, who could lock it"
        raise CallError("failed", message, {"hint": f"chmod 700 {path}"})
    until = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(fd)
                raise CallError(
                    "busy",
                    f"another qvm-policy is writing in {folder}",
                    {"hint": "the same again when it has ended"},
                ) from None
            time.sleep(LOCK_PAUSE_S)
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd


def _open_lock(folder: str) -> int:
    above = os.open(folder, _FOLDER)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(LOCK, 0o700, dir_fd=above)
        fd = os.open(LOCK, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
        _leave_to_owner(fd, above)
        return fd
    finally:
        os.close(above)


def _leave_to_owner(fd: int, folder: int) -> None:
    """A file that root makes in another user's folder must belong to that user, who has to be able
    to go on."""
    if os.geteuid() == 0 == os.fstat(fd).st_uid:
        owner = os.fstat(folder)
        if owner.st_uid != 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def _compare(path: str, name: str, expected: str) -> None:
    current = read(path)
    if expected == ANY:
        return
    if expected == NEW:
        if current is not None:
            message = f"{name} is there already, and a new file was to be made"
            raise CallError("busy", message, {"hint": f"qvm-policy get {name}"})
        return
    if current is None:
        raise CallError("busy", f"{name} was taken away meanwhile: nothing was changed")
    if digest(current) != expected:
        message = f"{name} was changed meanwhile by another program: nothing was changed"
        raise CallError("busy", message, {"hint": f"qvm-policy get {name}"})


def _write(path: str, name: str, data: bytes, expected: str) -> None:
    # All work happens in the folder behind this descriptor. Its path may lead to another folder
    # meanwhile: root would then give a file in its own folder to the owner of the other.
    folder = os.open(os.path.dirname(path), _FOLDER)
    try:
        _write_into(folder, path, name, data, expected)
        os.fsync(folder)
        step("folder synced")
    finally:
        os.close(folder)


def _write_into(folder: int, path: str, name: str, data: bytes, expected: str) -> None:
    base = os.path.basename(path)
    # Hidden, so that no loader reads it. Only the holder of the lock makes one, so an existing one
    # is left from a killed predecessor.
    prefix = f".{base}.new-"
    for left in os.listdir(folder):
        if left.startswith(prefix):
            os.unlink(left, dir_fd=folder)
    temporary = f"{prefix}{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        before = os.stat(base, dir_fd=folder)
    except FileNotFoundError:
        before = None
    fd = os.open(temporary, flags, 0o600 if before else NEW_MODE, dir_fd=folder)
    try:
        try:
            step("made")
            _write_all(fd, data)
            step("written")
            if before is not None:
                _keep_owner(fd, before, name)
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
            else:
                _leave_to_owner(fd, folder)
            os.fsync(fd)
            step("synced")
        finally:
            os.close(fd)
        _compare(path, name, expected)
        step("compared")
        if expected == NEW:
            try:
                # Refuses a name that was taken just now.
                os.link(temporary, base, src_dir_fd=folder, dst_dir_fd=folder)
            except FileExistsError:
                message = f"{name} was made meanwhile by another program: nothing was changed"
                raise CallError("busy", message, {"hint": f"qvm-policy get {name}"}) from None
            os.unlink(temporary, dir_fd=folder)
        else:
            os.rename(temporary, base, src_dir_fd=folder, dst_dir_fd=folder)
        step("renamed")
    except BaseException:
        try:  # noqa: SIM105  (contextlib is slow to import)
            os.unlink(temporary, dir_fd=folder)
        except OSError:
            pass
        raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _keep_owner(fd: int, before: os.stat_result, name: str) -> None:
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) == (before.st_uid, before.st_gid):
        return
    try:
        os.fchown(fd, before.st_uid, before.st_gid)
    except PermissionError:
        raise CallError(
            "failed",
            f"{name} belongs to another user or group, and only root can keep that",
            {"hint": "the same as root"},
        ) from None


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, _FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    step("folder synced")


_PERMISSION_HINT = "the same as root, or as the user that the service runs as"


def _folder_hint(folder: str) -> str:
    return f"mkdir -p {folder}, or --policy-dir DIR, or PEDOS_POLICY_PATH=DIR"


def _failed(path: str, what: str, error: OSError) -> CallError:
    data = {}
    if isinstance(error, PermissionError):
        data["hint"] = _PERMISSION_HINT
    elif isinstance(error, FileNotFoundError):
        data["hint"] = _folder_hint(path)
    return CallError("failed", f"{path} {what}: {error.strerror or type(error).__name__}", data)
