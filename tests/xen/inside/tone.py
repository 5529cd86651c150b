"""Tones for sound servers, and what of them is heard: see tests/sound/tones.py.

bench-tone play HZ SECONDS      writes so much of it
bench-tone hear HZ...           reads all that comes, and prints as JSON how loud each is, 0 to 1,
                                in each whole block of 20 ms
"""

from __future__ import annotations

import json
import sys

from tones import blocks, tone


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "play":
        hertz, seconds = words
        sys.stdout.buffer.write(tone(float(seconds), int(hertz)))
    else:
        recording = sys.stdin.buffer.read()
        heard = {word: blocks(recording, int(word)) for word in words}
        print(json.dumps({word: [round(loud, 4) for loud in heard[word]] for word in words}))
