"""Progress for people: a bar on a terminal, one line a phase elsewhere; both on stderr.

Neither ever fails: a terminal that went away does not end a backup.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager, suppress
from typing import NoReturn, TextIO


def shown(stream: TextIO, *, quiet: bool) -> AbstractContextManager[Bar | Lines]:
    """What suits the stream; a terminal that does not know its width, as serial ones, cannot show a bar."""
    drawn = not quiet and stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    return Bar(stream) if drawn else Lines(stream, quiet=quiet)


def _title(name: str, link: int, links: int) -> str:
    return f"{name} link {link} of {links}" if links > 1 and name == "prepare" else name


class Bar:
    """A progress bar with bytes, rate and time left; a phase without a size only changes its title."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import tqdm  # noqa: PLC0415  (only on terminals)

        self._lock = threading.Lock()
        self._bar: tqdm[NoReturn] = tqdm(
            file=stream, unit="B", unit_scale=True, unit_divisor=1024, leave=False, dynamic_ncols=True, mininterval=0.2
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._bar.close()

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Show the phase, and begin to count anew if it has a size."""
        with self._lock, suppress(OSError):
            if total is not None:
                self._bar.reset(total=total)
            self._bar.set_description(_title(name, link, links))

    def advance(self, count: int) -> None:
        """Count bytes."""
        with self._lock, suppress(OSError):
            self._bar.update(count)

    def stands(self, done: int, rate: float) -> None:
        """Show where work stands that goes on elsewhere: bytes of the phase, and bytes a second."""
        with self._lock, suppress(OSError):
            self._bar.n = done
            if rate:
                # What tqdm makes a rate of when nobody has counted.
                self._bar.start_t = time.time() - done / rate
            self._bar.refresh()


class Lines:
    """One line when a phase begins, with its size if it has one."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._begun = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held back."""

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Say that the phase begins."""
        size = f" ({total} bytes)" if total is not None else ""
        with suppress(OSError):
            if not self._quiet:
                line = f"{time.monotonic() - self._begun:7.1f} s  {_title(name, link, links)}{size}"
                print(line, file=self._stream, flush=True)

    def advance(self, count: int) -> None:
        """Say nothing: lines are for logs."""

    def stands(self, done: int, rate: float) -> None:
        """Say nothing, either."""
