"""gRPC's asyncio side over a Unix socket, with MessagePack maps as messages."""

from __future__ import annotations

import grpc.aio
import msgpack

from .drive import PAYLOAD, load, main, say_ready

METHOD = "/bench.Echo/echo"


async def serve(path: str) -> None:
    async def echo(request: object, _context: object) -> object:
        return request

    handler = grpc.unary_unary_rpc_method_handler(
        echo, request_deserializer=msgpack.unpackb, response_serializer=msgpack.packb
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"echo": handler}),)
    )
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    say_ready()
    await server.wait_for_termination()


async def client(path: str, in_flight: int, calls: int) -> float:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        echo = channel.unary_unary(
            METHOD, request_serializer=msgpack.packb, response_deserializer=msgpack.unpackb
        )

        async def call() -> None:
            await echo({"data": PAYLOAD}, timeout=10)

        return await load(call, in_flight, calls)


if __name__ == "__main__":
    main("grpc_aio", serve, client)
