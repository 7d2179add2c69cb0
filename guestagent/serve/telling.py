"""What Trove's conductor hears of this agent, where there is one: the outbox, its postman, and what heartbeats say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from guestagent.agent import Served
from guestagent.conductor import Casts, Conductor
from guestagent.database import answers
from guestagent.errors import GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, Kind, State
from guestagent.operations.host import unwritable
from guestagent.outbox.box import Outbox
from guestagent.outbox.postman import Postman
from guestagent.outbox.stamps import Stamps
from guestagent.rpc.wire import open_transport
from guestagent.serve.settings import Settings

ASK_TIMEOUT = 5.0
"""Seconds that a database may take to greet us before a heartbeat calls it down."""
_GIB = 1 << 30


class Silence:
    """There is no conductor: whoever asked for a job asks how it goes."""

    def start(self) -> None:
        """Begin nothing."""

    def stop(self, *, timeout: float) -> None:
        """End nothing."""

    def healthy(self) -> bool:
        """Nothing can be wrong with it."""
        return True

    def changed(self, job: Job) -> None:
        """Tell nobody."""

    def refused(self, backup_id: str, error: GuestagentError, **facts: Any) -> None:
        """Tell nobody."""

    def stopped(self, meant: bool) -> None:
        """Tell nobody."""


class Telling:
    """There is a conductor, and it is told."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        served = settings.served
        self._settings = settings
        self._mark = served.state_dir / "server-stopped"
        self._transport = open_transport(settings.for_library(), served.transport_url)
        outbox = Outbox(served.state_dir / "outbox")
        self._conductor = Conductor(
            outbox,
            served.instance,
            ask=self._ask,
            stopped=self._mark.exists,
            records=ledger,
            used=self._used,
            digits=served.checksum_digits,
        )
        casts = Casts(
            self._transport,
            Stamps(served.state_dir / "stamps"),
            topic=served.conductor_topic,
            exchange=served.exchange,
            serializer=_serializer(served),
        )
        self._postman = Postman(
            outbox, casts.send, heartbeat=self._conductor.heartbeat, interval=served.heartbeat_interval
        )
        self._begun = False

    def start(self) -> None:
        """Send what waits since the last time, and heartbeats."""
        self._postman.start()
        self._begun = True

    def stop(self, *, timeout: float) -> None:
        """Send what can be sent within ``timeout`` seconds; the rest waits on disk."""
        if self._begun:
            self._postman.stop(timeout)
        self._transport.cleanup()

    def healthy(self) -> bool:
        """Whether the postman goes round."""
        return not self._begun or self._postman.healthy()

    def changed(self, job: Job) -> None:
        """Note what became of a job, durably; raises GuestagentError if the disk does not take it."""
        if job.kind is Kind.RESTORE and job.state is State.COMPLETED:
            self.stopped(False)
        self._conductor.changed(job)

    def refused(self, backup_id: str, error: GuestagentError, *, incremental: bool = False) -> None:
        """Note that a backup which Trove asked for will not be made."""
        self._conductor.refused(backup_id, error, incremental=incremental)

    def stopped(self, meant: bool) -> None:
        """Note whether the server is meant to be down; a restart of the agent does not change that."""
        try:
            if meant:
                self._mark.touch(mode=0o600)
            else:
                self._mark.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self._mark.parent, error) from error

    def _ask(self) -> object:
        return answers(self._settings.host().database.connection, timeout=ASK_TIMEOUT)

    def _used(self) -> float:
        """GB in use where the data lie, as Trove counts them; 0 where [database] datadir does not say where."""
        datadir = self._settings.host().database.datadir
        return _gigabytes_used(datadir) if datadir is not None and datadir.is_dir() else 0.0


def _serializer(served: Served) -> Any:
    """What encrypts messages to the conductor, if they are to be."""
    if not served.encryption_key:
        return None
    from guestagent.rpc.secure import ConductorSerializer  # noqa: PLC0415  (7 MB that few agents need)

    return ConductorSerializer(served.encryption_key, instance=served.instance)


def _gigabytes_used(place: Path) -> float:
    found = os.statvfs(place)
    return round((found.f_blocks - found.f_bfree) * found.f_frsize / _GIB, 2)
