"""The conductor of a fleet, in a process of its own: the tests' stub, which notes when each heartbeat comes.

One line of JSON on stdin says where; after that every line ``look`` is answered by one with what came since the last.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from benchmarks.fleet_agents import say
from tests.servers.conductor import Conductor


class Noting(Conductor):
    """A conductor that notes moments, by the clock that a host's processes share."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.came: list[tuple[str, float]] = []

    def received(self, instance_id: str, method: str, sent: float | None) -> None:
        """Note an instance and when it was heard of."""
        self.came.append((instance_id, time.monotonic()))

    def look(self) -> dict[str, Any]:
        """What came since the last look, and the CPU seconds that this process has taken so far."""
        came, self.came = self.came, []
        return {"came": came, "cpu": time.process_time()}


def main() -> None:
    """Serve until stdin ends."""
    logging.getLogger().addHandler(logging.NullHandler())
    with Noting(json.loads(sys.stdin.readline())["url"]) as conductor:
        say(listening=True)
        for _ in sys.stdin:
            say(**conductor.look())


if __name__ == "__main__":
    main()
