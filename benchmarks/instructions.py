"""Python instructions of a call with 32 in flight, by module: python -m benchmarks.instructions

Both ends run in one event loop, and every instruction of the interpreter is counted. So the figure
is the same on a busy machine, and shows the worth of a change. It does not include C code. Not a
gate.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_vchan import inbox

from .throughput import IN_FLIGHT
from .two_processes import PAYLOAD, connected, rendezvous_folder, serve

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any

EACH = 20  # calls of each caller; a quarter as many before that
SHOWN = 20  # modules


class Counting:
    """Counts instructions by code object while it is the trace function."""

    def __init__(self) -> None:
        self.instructions: Counter[CodeType] = Counter()

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.instructions[frame.f_code] += 1
        return self


def _module(code: CodeType) -> str:
    path = Path(code.co_filename)
    if path.parent.name.startswith("pedos_"):
        return f"{path.parent.name}.{path.stem}"
    # attrs and outcome make parts of trio's classes.
    return "others" if path.is_relative_to(Path(__file__).parent) else "trio"


async def _measure(folder: Path) -> Counter[str]:
    counting = Counting()
    listening = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, str(folder), False, listening.set)
        await listening.wait()
        async with connected(folder) as peer:

            async def caller(count: int) -> None:
                for _ in range(count):
                    await peer.call("echo", {"data": PAYLOAD}, timeout=60)

            for count, trace in ((EACH // 4, None), (EACH, counting)):
                sys.settrace(trace)
                async with trio.open_nursery() as callers:
                    for _ in range(IN_FLIGHT):
                        callers.start_soon(caller, count)
                sys.settrace(None)
        nursery.cancel_scope.cancel()
    by_module: Counter[str] = Counter()
    for code, count in counting.instructions.items():
        by_module[_module(code)] += count
    return by_module


def main() -> None:
    inbox.TURN_SECONDS = 60.0  # counting takes time, which would end a turn with each frame
    with rendezvous_folder() as folder:
        by_module = trio.run(_measure, Path(folder), strict_exception_groups=True)
    calls = IN_FLIGHT * EACH
    print(f"{'all':32} {by_module.total() / calls:6.0f}")
    for name, count in by_module.most_common(SHOWN):
        print(f"{name:32} {count / calls:6.0f}")


if __name__ == "__main__":
    main()
