"""What is left of jobs whose process died: ended for the record, once, and cleaned up.

A backup whose manifest is in the store, with all that it names and stands on, is a backup, whoever died
afterwards; every other interrupted job has failed.  Of a restore that may have stopped a server and never started
one, it is told whether one runs, and on which data.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from guestagent.datadir import incarnation, swap
from guestagent.datadir.durable import shown
from guestagent.datadir.place import server_running
from guestagent.errors import Busy, ChainBroken, Corrupt, GuestagentError, NotFound
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Failure, Job, Kind
from guestagent.jobs.story import restore_request
from guestagent.manifest import Backup
from guestagent.model import backup_id
from guestagent.operations.host import Host
from guestagent.operations.plan import target_of
from guestagent.operations.restore import sweep_restores
from guestagent.operations.sweep import sweep_own
from guestagent.streams.orphans import end_orphans

LOG = logging.getLogger(__name__)

WHAT = "the leftovers of dead jobs"

_SERVER_AT_STAKE = frozenset({"stop", "start"})
"""Phases of a restore in which it may have stopped a server, and not started one."""


@dataclass(frozen=True)
class _Left:
    """What a dead restore has left in its target, in words, and what to do where no server runs on it."""

    told: tuple[str, ...] = ()
    remedy: str = ""


def settle(ledger: Ledger, host: Host, *, give_up: bool = False) -> list[Job]:
    """End dead jobs and their tools, and sweep what they left; gives the jobs that this has ended.

    A backup whose store cannot be asked how it ended is left as it is, unless we ``give_up`` on that.
    """
    with ExitStack() as stack:
        stack.enter_context(host.catalog)
        try:
            stack.enter_context(only_job(host.state_dir, WHAT))
        except Busy as error:
            LOG.info("%s: what dead jobs left behind is swept by the next job", error.what)
            end_orphans()
            return _end_all(ledger, host, recovering=False, give_up=give_up)
        ended = settle_locked(ledger, host, give_up=give_up)
        _recover_configured(host)
        return ended


def settle_locked(ledger: Ledger, host: Host, *, give_up: bool = False) -> list[Job]:
    """The same for whoever holds the host's lock and has the catalog open, and about to begin a job of its own."""
    end_orphans()
    ended = _end_all(ledger, host, recovering=True, give_up=give_up)
    sweep_own(host)
    return ended


def _end_all(ledger: Ledger, host: Host, *, recovering: bool, give_up: bool) -> list[Job]:
    ended = []
    for job in ledger.interrupted():
        left = _recovered(host, job) if recovering else _Left()
        try:
            now = _end(ledger, host, job, left, ask=not give_up)
        except GuestagentError as error:
            LOG.warning("cannot tell how %s ended: %s", job, error)
        else:
            ended += [now] if now.state.ended else []  # somebody may have begun it anew
    return ended


def _recover_configured(host: Host) -> None:
    """Finish what a dead restore had begun in the configured datadir; one that is not ours to touch stays."""
    datadir = host.database.datadir
    if datadir is None or not os.path.isdir(datadir):
        return
    try:
        left = _cleared(host, datadir)
    except GuestagentError as error:
        LOG.error("cannot look for an interrupted restore: %s", error)
        return
    if left.told:
        words = "; ".join(filter(None, (*left.told, left.remedy)))
        LOG.warning("an earlier restore had died in its swap: %s", words)


def _end(ledger: Ledger, host: Host, job: Job, left: _Left, *, ask: bool) -> Job:
    """Note the end that the job had; ``ask`` the store, if only that can tell."""
    published = _published(host, job) if ask and job.kind is Kind.BACKUP else None
    if published is not None:
        LOG.warning("%s was complete when its process died", job)
        return ledger.complete(job.id, published.properties(), runner=job.runner)
    step = ledger.step(job.id)
    where = f" in phase {job.phase}" if job.phase else ""
    if step and step.total and step.phase == job.phase:
        where += f", at {step.done} of about {step.total} bytes"
    died = f"the process that ran it died{where}, or could not note its end"
    error = GuestagentError("; ".join((died, *left.told)), hint=left.remedy or "ask for it again, under a new id")
    LOG.error("%s: %s", job, error)
    return ledger.fail(job.id, Failure.of(error), runner=job.runner)


def _published(host: Host, job: Job) -> Backup | None:
    """The backup, if it became one that can be restored."""
    if host.instance is None:
        return None
    try:
        found = host.catalog.at(host.catalog.location(host.instance, backup_id(job.id)))
        for link in host.catalog.chain(found, locked_too=True):
            host.catalog.check_whole(link)
    except (NotFound, Corrupt, ChainBroken):
        return None
    return found


def _recovered(host: Host, job: Job) -> _Left:
    """Leave the target of a dead restore in one of the two states that are clear; says in which."""
    if job.kind is not Kind.RESTORE:
        return _Left()
    target = target_of(host, restore_request(job.request))
    if target is None or not os.path.isdir(target):
        return _Left()
    try:
        return _cleared(host, target, server_at_stake=job.phase in _SERVER_AT_STAKE)
    except GuestagentError as error:
        return _Left((str(error),))


def _cleared(host: Host, target: Path, *, server_at_stake: bool = False) -> _Left:
    """End a swap, and remove what had been fetched for one; says what became of the data, and of their server."""
    found = swap.recover(target) or ""
    sweep_restores(host, target)
    told = (found,) if found else ()
    if not (found or server_at_stake) or server_running(target):
        return _Left(told)
    return _Left((*told, _down(target), *_kept(target, found)), _start_it(host))


def _start_it(host: Host) -> str:
    start = " ".join(host.database.start_command)
    return f"see that these are the data that you want, and start the server ({start}); or restore again, with --start"


def _down(target: Path) -> str:
    """That no server runs there, and where the data come from that it would run on."""
    life = incarnation.read(target)
    origin = f"restored from backup {life.restored_from}" if life and life.restored_from else "never restored"
    return f"no server runs on {shown(target)}, whose data were {origin}"


def _kept(target: Path, told: str) -> list[str]:
    """The older data that lie there, but for those that were told of."""
    return [f"older data are kept in {shown(old)}" for old in swap.kept(target) if shown(old) not in told]
