"""The configuration in force: read at the start and at each reload, and as it was where it cannot be read any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guestagent import agent
from guestagent.agent import Served
from guestagent.operations.host import Host


class Settings:
    """This agent's configuration.  ``reload`` is for one thread, the rest for all."""

    def __init__(self, config_files: Sequence[str]) -> None:
        self._files = tuple(config_files)
        self._conf = agent.load(self._files)
        self.served: Served = agent.served(self._conf)

    def host(self) -> Host:
        """This host's parts, by the configuration in force: for one job, or one request."""
        return agent.build(self._conf)

    def for_library(self) -> Any:
        """A configuration for a library that reads sections of its own from the same files."""
        return agent.for_library(self._conf)

    def reload(self) -> None:
        """Read the files again; raises ConfigError, and then everything stays as it was."""
        fresh = agent.reload(self._conf, self._files)
        agent.served(fresh)
        self._conf = fresh
