"""The agent that serves: one process on every database host, alive for months, asleep while there is nothing to do.

- signals: what asks the main thread to wake up
- settings: the configuration in force, and its reload
- telling: what Trove's conductor hears, where there is one
- parts: the ledger, the worker, the conductor and the RPC server, put together
- daemon: the main thread's life: start, serve, reload, stop; and what systemd hears of it

Nothing here takes a backup or reads a message: it starts those who do, and ends them in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from guestagent.errors import GuestagentError
from guestagent.jobs.lock import only_agent
from guestagent.serve.daemon import HEARD, Daemon
from guestagent.serve.parts import Parts
from guestagent.serve.settings import Settings
from guestagent.serve.signals import Signals
from guestagent.systemd import Notifier

__all__ = ["serve"]


def serve(config_files: Sequence[str], notifier: Notifier) -> None:
    """Be this host's agent until SIGTERM or SIGINT; raises what makes that impossible.

    Threads that hang may be left behind, so the process must be ended without waiting for them.
    """
    try:
        with Signals(HEARD) as signals:
            settings = Settings(config_files)
            with only_agent(settings.served.state_dir):
                parts = Parts(settings, signals.ring)
                Daemon(parts, reload=settings.reload, notifier=notifier, signals=signals).run()
    except GuestagentError as error:
        notifier.status(f"failed: {error}")
        raise
