"""A peer in a process of its own, to be killed: `mortal.py DIRECTORY BYTES [close]`.

Sends that many bytes as domain 3 to domain 7 on port 5, closes if told to, says "sent" on standard
output, and waits.
"""

import signal
import sys

import trio
from pedos_vchan import shm
from pedos_vchan.stream import VchanStream


async def main(directory: str, count: str, *then: str) -> None:
    stream = VchanStream(await shm.connect(directory, 3, 7, 5))
    await stream.send_all(b"m" * int(count))
    if then:
        await stream.aclose()
    print("sent", flush=True)
    signal.pause()


trio.run(main, *sys.argv[1:])
