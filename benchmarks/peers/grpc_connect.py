"""gRPC's asyncio side over a Unix socket, with a channel for each call, as one has it who talks to
somebody else each time."""

from __future__ import annotations

import grpc.aio
import msgpack

from .drive import PAYLOAD, load, main
from .grpc_aio import METHOD, serve


async def client(path: str, in_flight: int, calls: int) -> float:
    async def call() -> None:
        # Without its own pool of connections, a new channel would be an old one.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            echo = channel.unary_unary(
                METHOD, request_serializer=msgpack.packb, response_deserializer=msgpack.unpackb
            )
            await echo({"data": PAYLOAD}, timeout=10)

    return await load(call, in_flight, calls)


if __name__ == "__main__":
    main("grpc_connect", serve, client)
