"""Pumps a socket in a process of its own, to be killed: `pumping.py DIRECTORY SOCKET FILE`.

SOCKET is the number of a descriptor, DIRECTORY that of the rendezvous with domain 7, as domain 3
and on port 5. Another thread then looks at FILE. SIGUSR1 has the event loop hang.
"""

import logging
import os
import signal
import sys
import threading
import time

from pedos_vchan import running, shm
from pedos_vchan.pump import pump


async def main(directory: str, socket: str, file: str) -> None:
    channel = await shm.connect(directory, 3, 7, 5)
    threading.Thread(target=os.path.exists, args=[file], daemon=True).start()
    await pump(channel, int(socket), int(socket), alone=True)


logging.basicConfig(format="%(message)s")
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1000))
running.run(main, *sys.argv[1:])
