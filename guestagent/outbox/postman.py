"""The postman: one thread that sends what the outbox holds, oldest first, and the heartbeat.

It sleeps until there is something to do.  While nobody takes its messages it tries again, at growing and random
distances, since thousands of its kind wait for the same broker.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from guestagent.errors import GuestagentError
from guestagent.outbox.box import Letter, Outbox

LOG = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds between two heartbeats."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a message is tried again: random, between the first and a limit that doubles up to the second."""
GAP = 1.0
"""Seconds between two messages: a receiver with several workers handles them at once if they come at once."""
JITTER = 0.1
"""By how much of the interval heartbeats come too early or too late."""
MOST_DOUBLINGS = 16

Message = tuple[str, Mapping[str, Any]]
"""A method and its arguments."""


class Postman:
    """Sends by ``send``, which raises GuestagentError for what was not delivered, and then may be tried again.

    ``heartbeat`` gives what is to be said every ``interval`` seconds (None: nothing this time); it is not kept if
    nobody takes it.  ``interval`` may be changed at any time.
    """

    def __init__(
        self,
        outbox: Outbox,
        send: Callable[[str, Mapping[str, Any]], None],
        *,
        heartbeat: Callable[[], Message | None] | None = None,
        interval: float = INTERVAL,
        pauses: tuple[float, float] = (FIRST_PAUSE, LONGEST_PAUSE),
        gap: float = GAP,
    ) -> None:
        self.interval = interval
        self._outbox = outbox
        self._send = send
        self._heartbeat = heartbeat
        self._first_pause, self._longest_pause = pauses
        self._gap = gap
        self._failures = 0
        self._not_before = 0.0
        self._next_beat = 0.0
        self._stop_by: float | None = None
        self._thread = threading.Thread(target=self._work, name="postman", daemon=True)

    def start(self) -> None:
        """Begin; the first heartbeat comes at a random moment within the interval."""
        self._next_beat = time.monotonic() + random.uniform(0, self.interval)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Send what waits, as far as that goes at once, and end; what is left stays for the next start.

        Returns within ``timeout`` seconds, whatever the broker does.
        """
        if self._thread.ident is None:
            return
        self._stop_by = time.monotonic() + timeout
        self._outbox.ring()
        self._thread.join(timeout)
        if self._thread.is_alive():
            LOG.warning("the broker does not answer; %d messages stay in the outbox", len(self._outbox))

    def healthy(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    # The thread

    def _work(self) -> None:
        while self._stop_by is None:
            self._outbox.wait(self._guarded_turn())
        try:
            self._last_round(self._stop_by)
        except Exception:
            LOG.exception("the postman ends with an error")

    def _guarded_turn(self) -> float | None:
        """A door: whatever goes wrong with one message must not end the postman.  Gives the seconds to sleep."""
        try:
            return self._turn()
        except Exception:
            LOG.exception("the postman goes on after an error")
            return self._longest_pause

    def _turn(self) -> float | None:
        if self._heartbeat is not None and (self._outbox.hurried() or self._next_beat <= time.monotonic()):
            self._beat(self._heartbeat)
        if self._stop_by is None and self._not_before <= time.monotonic():
            letter = self._outbox.due()
            if letter is not None:
                self._deliver(letter)
        return self._sleep()

    def _sleep(self) -> float | None:
        """Seconds until there is something to do; None: until something is put into the outbox."""
        now = time.monotonic()
        times = [self._next_beat - now] if self._heartbeat is not None else []
        left = self._outbox.left()
        if left is not None:
            times.append(max(left, self._not_before - now))
        return max(0.0, min(times)) if times else None

    def _beat(self, heartbeat: Callable[[], Message | None]) -> None:
        self._next_beat = time.monotonic() + self.interval * random.uniform(1 - JITTER, 1 + JITTER)
        try:
            message = heartbeat()
            if message is not None:
                self._taken(*message)
        except Exception:
            LOG.exception("no heartbeat this time")

    def _deliver(self, letter: Letter) -> bool:
        """Send one message; whether it was taken."""
        try:
            taken = self._taken(letter.method, letter.arguments)
        except Exception:
            LOG.exception("%s on %s lets others go first", letter.method, letter.subject)
            self._outbox.put_off(letter)
            return False
        if taken:
            self._not_before = time.monotonic() + self._gap
            self._outbox.done(letter)
        return taken

    def _taken(self, method: str, arguments: Mapping[str, Any]) -> bool:
        """Whether a message was taken; raises what nobody foresaw."""
        try:
            self._send(method, arguments)
        except GuestagentError as error:
            self._failed(error)
            return False
        if self._failures:
            LOG.warning("messages are taken again, after %d attempts", self._failures)
            self._failures, self._not_before = 0, 0.0
        return True

    def _failed(self, error: GuestagentError) -> None:
        if not self._failures:
            LOG.warning("cannot send, and go on trying: %s", error)
        self._failures += 1
        limit = min(self._longest_pause, self._first_pause * 2.0 ** min(self._failures, MOST_DOUBLINGS))
        self._not_before = time.monotonic() + random.uniform(min(self._first_pause, limit), limit)

    def _last_round(self, stop_by: float) -> None:
        """One attempt for each message, until one fails or there is no time left."""
        while (letter := self._outbox.due()) is not None:
            pause = self._not_before - time.monotonic() if not self._failures else 0.0
            if time.monotonic() + pause >= stop_by:
                return
            time.sleep(max(0.0, pause))
            if not self._deliver(letter):
                return
