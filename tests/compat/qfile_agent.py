"""The sender of files, as it is called by the one who copies: a local program of a call.

    qrexec-client-vm VM qubes.Filecopy qfile_agent.py FILE...

Its output goes to the service and the service's answer is its input, as a program of that name does
it: a header for each file (lengths, mode and times, little-endian), its name and its bytes, at the
end a header of zeroes; then it waits for an error number and the checksum of all that arrived. It
tells people of progress at SAVED_FD_1, which is its caller's output.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

HEADER = struct.Struct("<IIQIIII")
RESULT = struct.Struct("<IIQ")


class Sender:
    """Writes to the service, and counts the checksum."""

    def __init__(self) -> None:
        self.checksum = 0

    def write(self, data: bytes) -> None:
        self.checksum = zlib.crc32(data, self.checksum)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(1, rest) :]

    def send(self, path: Path) -> None:
        content, found = path.read_bytes(), path.stat()
        name = path.name.encode() + b"\0"
        times = int(found.st_atime), 0, int(found.st_mtime), 0
        self.write(HEADER.pack(len(name), found.st_mode, len(content), *times) + name)
        self.write(content)


def main() -> int:
    sender = Sender()
    try:
        for name in sys.argv[1:]:
            sender.send(Path(name))
        sender.write(bytes(HEADER.size))
    except BrokenPipeError:
        pass  # the answer says why the service reads no more
    answer = sys.stdin.buffer.read(RESULT.size)
    if len(answer) < RESULT.size:
        print("qfile-agent: the other side has gone without an answer", file=sys.stderr)
        return 1
    error, _, checksum = RESULT.unpack(answer)
    if error:
        last = sys.stdin.buffer.read()[4:].rstrip(b"\0").decode()
        print(f"qfile-agent: {last}: {os.strerror(error)}", file=sys.stderr)
        return 1
    if checksum != sender.checksum:
        print("qfile-agent: what arrived is not what was sent", file=sys.stderr)
        return 1
    os.write(int(os.environ["SAVED_FD_1"]), f"sent {len(sys.argv) - 1} files\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
