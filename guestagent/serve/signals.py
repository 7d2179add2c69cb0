"""What wakes the main thread: signals, and other threads that ring."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Collection
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

_PLENTY = 65536


class Signals:
    """Notes signals instead of obeying them; a context manager for the main thread, which sleeps in ``wait``.

    A storm of signals is noted as one of each kind.  The kernel may hand a signal to any thread, and that would wake
    nobody, hence the pair of sockets.  None is blocked: our children would inherit that, and never hear of a cancel.
    """

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        self._numbers = numbers
        self._heard: set[signal.Signals] = set()
        self._before: dict[signal.Signals, Any] = {}
        self._bell, self._ringer = socket.socketpair()

    def __enter__(self) -> Self:
        for end in (self._bell, self._ringer):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._hear) for number in self._numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._bell.close()
        self._ringer.close()

    def ring(self) -> None:
        """Wake the main thread; for any thread."""
        with suppress(OSError):  # full: it is being woken already; closed: nobody is there to wake
            self._ringer.send(b"\0")

    def wait(self, seconds: float | None) -> frozenset[signal.Signals]:
        """Sleep until a signal, a ring or ``seconds`` have passed (None: no limit); gives the signals."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.poll(None if seconds is None else max(0, seconds) * 1000)
        with suppress(BlockingIOError):
            while self._bell.recv(_PLENTY):
                pass
        heard, self._heard = self._heard, set()
        return frozenset(heard)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._heard.add(signal.Signals(number))
        # In case that wait has looked already: its next poll shall end at once.
        self.ring()
