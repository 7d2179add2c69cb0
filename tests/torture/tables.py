"""Tables for the documentation."""

from __future__ import annotations

from collections.abc import Sequence


def rst(lines: Sequence[Sequence[str]]) -> str:
    """A simple table; the first line is its head."""
    widths = [max(len(line[column]) for line in lines) or 1 for column in range(len(lines[0]))]
    bar = "  ".join("=" * width for width in widths)
    texts = [
        "  ".join((cell or "\\").ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([bar, texts[0], bar, *texts[1:], bar, ""])
