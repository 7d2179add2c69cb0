"""How many files a tool may have open: all that our hard limit allows, and what to say when that is not enough."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Sequence

MORE_FILES = "allow more open files: LimitNOFILE= in a drop-in of the service's unit, or ulimit -Hn in a shell"
_OUT_OF_FILES = re.compile(r"Too many open files|socket \(24\)")


def most_files() -> int:
    """How many files a child may have open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if shutil.which("prlimit") else soft


def roomy(argv: Sequence[str]) -> Sequence[str]:
    """The command, such that it may open that many: a backup tool holds a file open for each table.

    The soft limit, which is 1024 in most places, stays ours.  prlimit is of util-linux, which every Debian has.
    """
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)[0], most_files()
    return ["prlimit", f"--nofile={most}:{most}", "--", *argv] if soft < most and shutil.which(argv[0]) else argv


def remedy(tail: Sequence[str]) -> str:
    """A hint for a tool that ran out of files: its last line may say something else, such as an invalid page."""
    return MORE_FILES if any(_OUT_OF_FILES.search(line) for line in tail) else ""
