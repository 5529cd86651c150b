"""varlink over a Unix socket, by its own package for Python: a connection for each call."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import varlink

from .drive import PAYLOAD, load, main, say_ready

INTERFACE = "bench.echo"
DESCRIPTION = f"interface {INTERFACE}\n\nmethod Echo(data: string) -> (data: string)\n"


async def serve(path: str) -> None:
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        (Path(folder) / f"{INTERFACE}.varlink").write_text(DESCRIPTION)
        service = varlink.Service(
            vendor="bench", product="bench", version="1", interface_dir=folder
        )

        class Handler(varlink.RequestHandler):
            pass

        Handler.service = service

        @service.interface(INTERFACE)
        class Echo:
            def Echo(self, data: str) -> dict[str, str]:  # noqa: N802 - its name there
                return {"data": data}

        with varlink.ThreadingServer(f"unix:{path}", Handler) as server:
            threading.Thread(target=say_ready).start()
            server.serve_forever()


async def client(path: str, in_flight: int, calls: int) -> float:
    with varlink.Client.new_with_address(f"unix:{path}") as known:
        known.get_interface(INTERFACE)

        async def call() -> None:
            with known.open(INTERFACE) as connection:
                answer = connection.Echo(PAYLOAD)
                assert answer["data"] == PAYLOAD

        return await load(call, in_flight, calls)


if __name__ == "__main__":
    main("varlink_unix", serve, client)
