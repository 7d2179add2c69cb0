"""What a tool may write on stderr: megabytes, with a word in them that nobody may see.

As a program, ``flood.py KIND BYTES FILE`` writes about so many bytes, with the words of FILE among them; KIND is
``flood-lines``, ``flood-line`` (which never ends) or ``flood-end`` (lines, the last of which holds the words alone).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

_NOISE = b"\xff\x00\xfe[00] Copying ./d/t.ibd to <STDOUT> \x1b[31m "
_EVERY = 7


def flood(kind: str, size: int, words: bytes) -> Iterator[bytes]:
    """The pieces of such a flood."""
    number = written = 0
    while written < size:
        middle = words if words and number % _EVERY == 0 else b""
        before = _NOISE * (number % 60) + b"." * (number % len(_NOISE))  # so that it is cut at any place
        piece = b"%d %s%s%s" % (number, before, middle, b"" if kind == "flood-line" else b"\n")
        number, written = number + 1, written + len(piece)
        yield piece
    if kind == "flood-end":
        yield b"[ERROR] it is over, for " + words + b"\n"


def main(kind: str, size: str, path: str) -> None:
    """Write one."""
    words = Path(path).read_bytes()
    for piece in flood(kind, int(size), words):
        sys.stderr.buffer.write(piece)
    sys.stderr.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
