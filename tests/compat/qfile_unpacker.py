"""The receiver of files, the service qubes.Filecopy: writes them to ~/QubesIncoming/SOURCE, and
answers with an error number and the checksum, while its input may still be open."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

HEADER = struct.Struct("<IIQIIII")
RESULT = struct.Struct("<IIQ")


class Receiver:
    """Reads from the caller, and counts the checksum."""

    def __init__(self) -> None:
        self.checksum = 0

    def read(self, size: int) -> bytes:
        data = sys.stdin.buffer.read(size)
        if len(data) < size:
            raise EOFError
        self.checksum = zlib.crc32(data, self.checksum)
        return data


def main() -> int:
    folder = Path.home() / "QubesIncoming" / os.environ["QREXEC_REMOTE_DOMAIN"]
    folder.mkdir(parents=True, exist_ok=True)
    receiver, name, error = Receiver(), b"", 0
    try:
        while header := HEADER.unpack(receiver.read(HEADER.size)):
            length, mode, size = header[:3]
            if not length:
                break
            name = receiver.read(length)
            path = folder / Path(name.rstrip(b"\0").decode()).name
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777)
            with open(file, "wb") as written:
                written.write(receiver.read(size))
    except OSError as failed:
        error = failed.errno or 1
    except EOFError:
        return 1  # the caller has gone: nobody is there to answer to
    answer = RESULT.pack(error, 0, receiver.checksum)
    if error:
        answer += struct.pack("<I", len(name)) + name
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
