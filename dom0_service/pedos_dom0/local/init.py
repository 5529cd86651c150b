"""`pedos-local init DIR`: makes a folder with a configuration, a policy and all sub-folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from pedos_protocol.names import escaped_text

from pedos_dom0.local import config, templates
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.words import for_shell, in_words

POLICY_NAME = "50-local.policy"
FACTS_NAME = "50-local.toml"


class InitError(Exception):
    """`str()` is for the user; nothing was left half done."""


def init(directory: str, *, text: str = templates.CONFIG) -> Layout:
    """Makes DIR with this pedos.toml; InitError if that fails, or if DIR is one already.

    A new DIR appears in one rename. In an existing folder, pedos.toml comes last: that file is what
    makes a folder a DIR.
    """
    layout = Layout.of(directory)
    root = escaped_text(str(layout.root))
    try:
        if layout.config.exists() or layout.config.is_symlink():
            raise InitError(
                f"{root} already holds a pedos.toml, which is left as it is\n"
                f"  next:  pedos-local up {for_shell(directory)}    (or init another folder)"
            )
        if layout.root.exists():
            _fill(layout, text)
        else:
            _make(layout, text)
    except OSError as error:
        raise InitError(f"cannot make {root}: {in_words(error)}") from error
    return layout


def _make(layout: Layout, text: str) -> None:
    parent = layout.root.parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".pedos-init-", dir=parent))
    try:
        _write(Layout(temporary), temporary / "pedos.toml", text)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(layout.root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(layout: Layout, text: str) -> None:
    before = set(layout.root.iterdir())  # NotADirectoryError when it is a file
    temporary = layout.root / f".pedos.toml.{os.getpid()}"
    try:
        _write(layout, temporary, text)
        temporary.rename(layout.config)
    except BaseException:
        with contextlib.suppress(OSError):
            for entry in set(layout.root.iterdir()) - before:
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()
        raise


def _write(layout: Layout, config_path: Path, text: str) -> None:
    names = config.parse(text, config_path).names
    layout.make_folders(names)
    policy = layout.policy / POLICY_NAME
    if not policy.exists():  # the user's own policy stays
        policy.write_text(templates.POLICY, encoding="utf-8")
    facts = layout.facts / FACTS_NAME
    if not facts.exists():
        facts.write_text(templates.FACTS, encoding="utf-8")
    config_path.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
