"""A proxy for one request, as a service: the request is JSON on its input; the body of the answer
goes to its output as it comes; what is to be said of it, JSON again, goes to its error at the
end."""

from __future__ import annotations

import json
import sys


def main() -> int:
    request = json.loads(sys.stdin.buffer.read())
    if request.get("method") != "GET":
        json.dump({"error": "only GET"}, sys.stderr)
        return 1
    blocks, size = request["blocks"], request["block_size"]
    for number in range(blocks):
        sys.stdout.buffer.write(bytes([number % 251]) * size)
    sys.stdout.buffer.flush()
    told = {"headers": {"content-type": "application/octet-stream"}, "length": blocks * size}
    json.dump(told | {"padding": "x" * request.get("padding", 0)}, sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
