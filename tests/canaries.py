"""Secrets that sing: each is unlike all else, and is found again in whatever form somebody wrote it down."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

SAMPLED_EVERY = 0.01
"""Seconds between two looks at the processes."""


def canary(name: str) -> str:
    """A secret: letters and digits, so that quotes, escapes and percent signs around it do not hide it."""
    return f"Zz{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def awkward(secret: str) -> str:
    """The secret inside of what people use for passwords."""
    return f"a\"b\\ c'#%/{secret}ü;=$$"


def forms(secret: bytes) -> dict[str, bytes]:
    """How a secret may be written down, wherever it begins."""
    found = {"plain": secret, "hexadecimal": secret.hex().encode(), "HEXADECIMAL": secret.hex().upper().encode()}
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + secret)
        inner = whole[4 if shift else 0 : -4]  # without what depends on what stands beside it
        found[f"base64 from byte {shift}"] = inner
        found[f"base64url from byte {shift}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return found


@dataclass
class Haul:
    """All that was written or visible, by where it was found; ``planted`` are the secrets, by name."""

    planted: dict[str, bytes] = field(default_factory=dict)
    found: dict[str, bytes] = field(default_factory=dict)

    def plant(self, name: str) -> str:
        """A new secret."""
        made = canary(name)
        self.planted[name] = made.encode()
        return made

    def add(self, where: str, what: str | bytes) -> None:
        """Keep something that was seen."""
        data = what.encode("utf-8", "surrogateescape") if isinstance(what, str) else what
        self.found[where] = self.found.get(where, b"") + b"\n" + data

    def add_tree(self, where: str, top: Path) -> None:
        """Keep the names and the contents of all files; of zstd frames, what is in them, too."""
        for path in top.rglob("*"):
            self.add(f"{where}: names", str(path))
            if path.is_file() and not path.is_symlink():
                self.add_stored(f"{where}: {path.relative_to(top)}", path.read_bytes())

    def add_stored(self, where: str, data: bytes) -> None:
        """Keep an object."""
        self.add(where, data)
        with suppress(zstandard.ZstdError):
            self.add(
                f"{where}, decompressed",
                zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(),
            )

    def add_error(self, where: str, error: BaseException | None) -> None:
        """Keep an error with all that hangs on it: what it says, its arguments, its values, and its causes."""
        seen: set[int] = set()
        waiting = [error]
        while waiting:
            one = waiting.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            self.add(where, f"{one} {one!r} {one.args!r} {vars(one)!r} {''.join(traceback.format_exception(one))}")
            waiting += [one.__cause__, one.__context__]

    def leaks(self) -> list[str]:
        """Which secret is where, and in which form."""
        return sorted(
            f"{name} ({form}) in {where}: {data[max(0, data.index(text) - 80) : data.index(text) + 80]!r}"
            for name, secret in self.planted.items()
            for form, text in forms(secret).items()
            for where, data in self.found.items()
            if text in data
        )


@contextmanager
def watched(haul: Haul) -> Iterator[None]:
    """Look at the processes below this one all the time: at what they are called with, and what their own get to see.

    Our own children were given secrets by their environment, as an operator does; theirs should not have them.
    """
    over = threading.Event()
    seen: set[bytes] = set()
    watcher = threading.Thread(target=_watch, args=(haul, seen, over, os.getpid()), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(60)


def _watch(haul: Haul, seen: set[bytes], over: threading.Event, top: int) -> None:
    while not over.wait(SAMPLED_EVERY):
        for depth, pid in _below(top, 1):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                if Path(f"/proc/{pid}/cmdline").read_bytes() != command:
                    continue  # it has become another program meanwhile
                # A fork that has not become another program yet is still what it was forked from.
                foreign = depth > 1 and b"guestagent\0" not in command and b"guestagent.cli" not in command
                for name, data in (("argv", command), *([("environment", environment)] if foreign else [])):
                    if data not in seen:
                        seen.add(data)
                        haul.add(f"{name} of a process at depth {depth}", data)


def _below(pid: int, depth: int) -> Iterator[tuple[int, int]]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text().split():
                yield depth, int(child)
                yield from _below(int(child), depth + 1)


def recording(place: Path, tool: str, real: str, record: Path) -> Path:
    """A directory for PATH with a ``tool`` that writes down what it is called with and sees, and then is the real one.

    While ``record``.fail is there it prints the option file that it was given, and fails.
    """
    bin_directory = place / "bin"
    bin_directory.mkdir(exist_ok=True)
    script = bin_directory / tool
    script.write_text(
        f"#!{sys.executable} -S\n"
        "import os, sys\n"
        f"with open({str(record)!r}, 'a') as log:\n"
        "    print(sys.argv, dict(os.environ), file=log)\n"
        f"if os.path.exists({str(record)!r} + '.fail') and '--backup' in sys.argv:\n"
        "    options = next(word.partition('=')[2] for word in sys.argv if word.startswith('--defaults-file='))\n"
        "    sys.stderr.write(open(options).read())\n"
        "    sys.stderr.write(\"GRANT RELOAD ON *.* TO `b`@`%` IDENTIFIED BY PASSWORD '*0123'\\n\")\n"
        "    sys.exit(1)\n"
        f"os.execv({real!r}, sys.argv)\n"
    )
    script.chmod(0o755)
    return bin_directory
