"""The ledger: every job's record in a file of its own, durable before anything else happens, and bounded.

``STATE_DIR/jobs/ID.json`` is the record; ``ID.progress`` beside it says how far a running job is,
and is neither durable nor needed; ``ID.cancel`` is a request to stop it, ``ID.room`` the room kept
for its end.  Any process of this host may read and ask; whoever changes a record holds the ledger's
lock for as long as that takes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from guestagent.datadir import durable
from guestagent.errors import (
    LONGEST,
    Busy,
    Cancelled,
    Corrupt,
    GuestagentError,
    NotFound,
    Refused,
    UsageError,
    one_line,
)
from guestagent.jobs import room
from guestagent.jobs.record import MOST_BYTES, MOST_STEP, Failure, Job, State, Step
from guestagent.streams import orphans

LOG = logging.getLogger(__name__)

HISTORY = 500
"""Jobs that are remembered after their end."""

_RECORD, _PROGRESS, _CANCEL, _ROOM = ".json", ".progress", ".cancel", ".room"
_LOCK = ".lock"
_MODE = 0o600
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(_ID.pattern + re.escape(_RECORD))


def job_id(text: str) -> str:
    """The id of a job, a UUID in its canonical form; raises UsageError."""
    if not _ID.fullmatch(text.lower()):
        raise UsageError(f"not a job id: {text!r}", hint="give the UUID that `job list` shows")
    return text.lower()


class Ledger:
    """The records of one host's jobs; ``history`` is how many are kept after their end."""

    def __init__(self, state_dir: Path, *, history: int = HISTORY) -> None:
        self.state_dir = state_dir
        self._place = state_dir / "jobs"
        self._history = history

    def get(self, wanted: str) -> Job:
        """The job of that id; raises NotFound, and Corrupt for a record that cannot be read."""
        try:
            return _read(self._path(wanted, _RECORD))
        except FileNotFoundError as error:
            raise NotFound(f"no job {wanted} on this host", hint="see `job list`") from error
        except OSError as error:
            raise self._failed("read", error) from error

    def all(self) -> list[Job]:
        """Every job, oldest first; a record that cannot be read is told in the log and left where it is."""
        found = [job for path in self._records() if (job := _readable(path))]
        return sorted(found, key=lambda job: (job.created, job.id))

    def step(self, wanted: str) -> Step | None:
        """How far a running job is, if it has told."""
        try:
            return Step.from_bytes(durable.read_small(self._path(wanted, _PROGRESS), most=MOST_STEP))
        except (OSError, Corrupt):
            return None  # not begun, or ended, or caught by a power cut: nobody depends on it

    def interrupted(self) -> list[Job]:
        """The jobs that are said to run, and whose process is gone."""
        return [job for job in self.all() if is_interrupted(job)]

    def accept(self, job: Job) -> tuple[Job, bool]:
        """Write down a new job, or find the one that was accepted under its id; says whether it is new.

        Raises Refused if that one asked for something else.
        """
        with self._locked():
            earlier = self._find(job.id)
            if earlier is not None and not earlier.same_request(job):
                raise Refused(f"id {job.id} is taken by another request", hint="send this one with an id of its own")
            return (earlier, False) if earlier is not None else (self._put(job), True)

    def open(self, job: Job) -> Job:
        """Write down a job that begins at once, in this process; one of the same id that has ended makes room.

        Raises Busy if that one waits or runs, and Refused if it came through another door: who asked for it
        there, under an id of theirs, has yet to find what became of it.
        """
        with self._locked():
            earlier = self._find(job.id)
            if earlier is not None and not earlier.state.ended and not is_interrupted(earlier):
                raise Busy(f"job {job.id} is {earlier.state.value} already", hint="wait for it, or cancel it")
            if earlier is not None and earlier.origin != job.origin:
                raise Refused(f"id {job.id} is taken by another request", hint="use another id")
            with self._explained("write to"):
                self._forget_asides(job.id)
            return self._put(job.begun(_now(), str(orphans.ourselves())))

    def begin(self, wanted: str) -> Job:
        """Note that this process runs the job now, if it still waits; gives it as it is then."""
        return self.change(wanted, State.QUEUED, lambda job: job.begun(_now(), str(orphans.ourselves())))

    def enter(self, wanted: str, phase: str) -> Job:
        """Note the phase of a running job."""
        return self.change(wanted, State.RUNNING, lambda job: replace(job, phase=phase))

    def fail(
        self,
        wanted: str,
        failure: Failure,
        *,
        state: State = State.RUNNING,
        runner: str | None = None,
        now: datetime | None = None,
    ) -> Job:
        """End a job that is in ``state``, run by ``runner`` if one is given; gives it as it is then."""
        return self.change(wanted, state, lambda job: job.failed(now or _now(), failure), runner=runner)

    def complete(
        self, wanted: str, result: Mapping[str, object], *, runner: str | None = None, now: datetime | None = None
    ) -> Job:
        """End a running job well, run by ``runner`` if one is given; gives it as it is then."""
        return self.change(wanted, State.RUNNING, lambda job: job.completed(now or _now(), result), runner=runner)

    def tell(self, wanted: str) -> Job:
        """Note that whoever listens has heard of the job's end."""
        with self._locked():
            job = self.get(wanted)
            return job if job.told or not job.state.ended else self._put(replace(job, told=True))

    def cancel(self, wanted: str, reason: str) -> Job:
        """Cancel a job that waits; ask whoever runs it to stop one that runs; leave alone one that has ended."""
        failure = Failure.of(Cancelled(f"cancelled before it began: {reason}"))
        with self._locked():
            job = self.get(wanted)
            if job.state is State.QUEUED:
                return self._put(job.failed(_now(), failure))
            if job.state is State.RUNNING:
                with self._explained("write to"):
                    path = self._path(wanted, _CANCEL)
                    durable.write(path, reason.encode(errors="replace"), mode=_MODE, like=self._place)
            return job

    def asked_to_stop(self, wanted: str) -> str | None:
        """Why a running job is to stop, if it is."""
        with suppress(OSError):
            words = durable.read_small(self._path(wanted, _CANCEL), most=LONGEST)
            return one_line(words.decode(errors="replace")) or "cancelled"
        return None

    def note(self, wanted: str, step: Step) -> None:
        """Say how far a job is, for whoever looks; a full disk must not end the job, so nothing is raised."""
        path = self._path(wanted, _PROGRESS)
        fresh = path.with_suffix(durable.FRESH)
        try:
            fresh.write_text(json.dumps(asdict(step)), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            LOG.debug("cannot write %s: %s", path, error)

    def change(self, wanted: str, state: State, how: Callable[[Job], Job], *, runner: str | None = None) -> Job:
        """Change the record of a job that is in ``state``, durably; one that is in another stays.  Gives the record.

        With ``runner``, only if that is still the one who runs it.
        """
        with self._locked():
            job = self.get(wanted)
            meant = job.state is state and runner in (None, job.runner)
            return self._put(how(job)) if meant else job

    def _put(self, job: Job) -> Job:
        """Write the record; gives it as whoever reads it will see it."""
        written = job.to_bytes()
        path, kept = self._path(job.id, _RECORD), self._path(job.id, _ROOM)
        with self._explained("write to"):
            if job.state is State.RUNNING:
                room.keep(kept, mode=_MODE, like=self._place)
            if not (job.state.ended and room.spend(kept, path, written)):
                durable.write(path, written, mode=_MODE, like=self._place)
        if job.state.ended:
            self._tidy(job)
        return Job.from_bytes(written)

    def _tidy(self, job: Job) -> None:
        """Forget what nobody needs once a job has ended; the end is written, so a failure costs nothing but room."""
        try:
            self._forget_asides(job.id)
            self._prune()
        except (OSError, GuestagentError) as error:
            LOG.warning("cannot tidy up %s: %s", self._place, error)

    def _find(self, wanted: str) -> Job | None:
        try:
            return self.get(wanted)
        except NotFound:
            return None

    def _prune(self) -> None:
        """Forget the oldest jobs beyond the history; one whose end nobody has heard of stays."""
        for half_written in self._place.glob(f"*.*{durable.FRESH}"):  # whoever did so has died, or had no room
            half_written.unlink(missing_ok=True)
        # As many files at least as there are ended jobs: most of the time they need not be read.
        if len(self._records()) <= self._history:
            return
        ended = [job for job in self.all() if job.state.ended]
        for job in ended[: max(0, len(ended) - self._history)]:
            if job.told:
                self._path(job.id, _RECORD).unlink(missing_ok=True)

    def _forget_asides(self, wanted: str) -> None:
        for suffix in (_PROGRESS, _CANCEL, _ROOM, durable.FRESH):
            self._path(wanted, suffix).unlink(missing_ok=True)

    def _records(self) -> list[Path]:
        """The files that are records by their names."""
        try:
            return [self._place / name for name in os.listdir(self._place) if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []  # no job yet
        except OSError as error:
            raise self._failed("read", error) from error

    def _path(self, wanted: str, suffix: str) -> Path:
        return self._place / f"{job_id(wanted)}{suffix}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes a record meanwhile."""
        with ExitStack() as stack:
            with self._explained("write to"):
                durable.make_private(self._place, like=self.state_dir)
                handle = os.open(self._place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
                stack.callback(os.close, handle)
                durable.give(handle, self.state_dir)
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(action, error) from error

    def _failed(self, action: str, error: OSError) -> GuestagentError:
        return GuestagentError(
            f"cannot {action} state_dir {self.state_dir}: {error.strerror}",
            hint="run as a user that may, make room, or set state_dir",
        )


def is_interrupted(job: Job) -> bool:
    """Whether the job is said to run, and its process is gone."""
    return job.state is State.RUNNING and not orphans.alive(job.runner)


def _read(path: Path) -> Job:
    job = Job.from_bytes(durable.read_small(path, most=MOST_BYTES))
    if job.id != path.stem:
        raise Corrupt(f"the record of job {job.id} lies under another id, {path.stem}", hint=f"remove {path}")
    return job


def _readable(path: Path) -> Job | None:
    try:
        return _read(path)
    except FileNotFoundError:
        return None  # forgotten since it was listed
    except (OSError, Corrupt) as error:
        LOG.warning("%s is left out: %s", path, error)
        return None


def _now() -> datetime:
    return datetime.now(tz=UTC)
