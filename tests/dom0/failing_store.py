"""A store that fails, for tests of what the service does then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_dom0.tables.store import Store, StoreError

FULL = "database or disk is full"


@contextlib.contextmanager
def full(*methods: str) -> Iterator[None]:
    """These methods of the store fail."""

    async def fail(*_arguments: Any, **_more: Any) -> None:
        raise StoreError(Path("dom0.sqlite"), FULL, "make room")

    with pytest.MonkeyPatch.context() as patch:
        for method in methods:
            patch.setattr(Store, method, fail)
        yield
