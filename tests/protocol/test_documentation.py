"""docs/protocol.md matches the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "protocol_tables.py"


def test_the_page_holds_the_tables_that_the_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("protocol_tables", TOOL)
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.PAGE.read_text()
    assert tables.page(text) == text, "run tools/protocol_tables.py"
