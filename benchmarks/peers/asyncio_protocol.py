"""The minimum in asyncio: protocols over a Unix socket, MessagePack, an id in every message.

No deadlines, no quotas, no checks. The server writes once for everything that arrived in one piece.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack

from .drive import PAYLOAD, load, main, say_ready


class Server(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.unpacker = msgpack.Unpacker()

    def data_received(self, data: bytes) -> None:
        self.unpacker.feed(data)
        packb = msgpack.packb
        self.transport.write(
            b"".join([packb([1, call, None, params]) for _, call, _, params in self.unpacker])
        )


class Client(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.unpacker = msgpack.Unpacker()
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.last = 0
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.unpacker.feed(data)
        for _, call, _, result in self.unpacker:
            self.waiting.pop(call).set_result(result)

    def call(self, method: str, params: dict[str, object]) -> asyncio.Future[Any]:
        self.last += 1
        future = self.waiting[self.last] = self.loop.create_future()
        self.transport.write(msgpack.packb([0, self.last, method, params]))
        return future


async def serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Server, path)
    say_ready()
    await server.serve_forever()


async def client(path: str, in_flight: int, calls: int) -> float:
    _, protocol = await asyncio.get_running_loop().create_unix_connection(Client, path)

    async def call() -> None:
        await protocol.call("echo", {"data": PAYLOAD})

    return await load(call, in_flight, calls)


if __name__ == "__main__":
    main("asyncio_protocol", serve, client)
