"""The agent's worker: requests in, durably and each once; one thread performs them one after the other.

Everything that it knows is in the ledger, so that it can die at any moment and the next one goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

from guestagent.errors import Busy, Corrupt, GuestagentError, NotFound, Refused
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.pause import Pause
from guestagent.jobs.perform import perform
from guestagent.jobs.record import Failure, Job, Kind, State, Step
from guestagent.jobs.story import Outcome
from guestagent.progress import Cancel, Watch

LOG = logging.getLogger(__name__)

QUEUE = 8
"""Jobs that may wait; whoever comes then is told that the host is busy."""
WAIT_LIMIT = 86400.0
"""Seconds that a job may wait."""
HANG = 3600.0
"""Seconds after which a job that has not even looked at its watch hangs."""
UNSURE = 900.0
"""Seconds for which we try to learn from the store how a dead backup ended."""
TOLD_AGAIN = timedelta(days=1)
"""How long ago a job may have ended for its end to be told again at the start."""


class Worker:
    """Takes requests, runs them, and tells ``on_change`` of each durable step; its methods are for any thread.

    ``story`` does what a job asks for; ``settle`` ends what dead agents left, giving up on the store if told so;
    ``limit`` gives the seconds that may pass without a byte.  ``on_change`` may fail: an end is told again later.
    """

    def __init__(
        self,
        ledger: Ledger,
        story: Callable[[Job, Watch], Outcome],
        *,
        on_change: Callable[[Job], object],
        settle: Callable[[bool], object] = lambda give_up: None,
        limit: Callable[[], float] = lambda: 0.0,
        queue_size: int = QUEUE,
        wait_limit: float = WAIT_LIMIT,
        hang: float = HANG,
    ) -> None:
        self._ledger = ledger
        self._story = story
        self._on_change = on_change
        self._settle = settle
        self._limit = limit
        self._queue_size = queue_size
        self._wait_limit = timedelta(seconds=wait_limit)
        self._hang = hang
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._current: tuple[Job, Cancel] | None = None
        self._watch: Watch | None = None
        self._stopping: str | None = None
        self._pause = Pause()
        self._unsettled: float | None = None
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    # For the doors

    def submit(self, job: Job) -> Job:
        """Accept a request: when this returns it outlives a power cut.  The same again gives the same job.

        Raises Busy if too many wait, and Refused if its deadline is over or its id means another request.
        """
        with self._changed:
            if not self._is_known(job):
                self._check_deadline(job)
                self._check_room()
            record, fresh = self._ledger.accept(job)
            if fresh:
                self._tell(record)  # before the thread can tell that it begins
            if record.state is State.QUEUED and record.id not in self._queue and not self._has_begun_with(record.id):
                self._queue.append(record.id)
                self._changed.notify_all()
        return record

    def refuse(self, job: Job, error: GuestagentError) -> Job:
        """Remember a request that is not accepted as a job that failed, where its sender cannot be answered."""
        with self._changed:
            self._ledger.accept(job)
            record = self._ledger.fail(job.id, Failure.of(error), state=State.QUEUED)
        self._guarded(self._tell_ends)
        return record

    def cancel(self, wanted: str, reason: str) -> Job:
        """Stop a job that runs, or keep one from beginning; gives its record, raises NotFound."""
        with self._changed:
            if self._current is not None and self._has_begun_with(wanted):
                self._current[1].set(reason)  # first, since a full disk takes no note
            job = self._ledger.cancel(wanted, reason)
            if job.state.ended and wanted in self._queue:
                self._queue.remove(wanted)
            self._changed.notify_all()
        if job.state.ended:
            self._guarded(self._tell_ends)  # whatever runs now may run for hours
        return job

    def get(self, wanted: str) -> Job:
        """The job of that id; raises NotFound."""
        return self._ledger.get(wanted)

    def all(self) -> list[Job]:
        """Every job of this host, oldest first."""
        return self._ledger.all()

    def step(self, wanted: str) -> Step | None:
        """How far a running job is."""
        return self._ledger.step(wanted)

    def running(self) -> Job | None:
        """The job that this worker runs."""
        with self._changed:
            return self._current[0] if self._current else None

    # For the daemon

    def start(self) -> None:
        """Take up what waits, and begin to work."""
        self._take_up()
        self._thread.start()

    def stop(self, reason: str, *, timeout: float) -> bool:
        """Cancel what runs and stop; what waits stays for the next worker.  False if it still runs afterwards."""
        with self._changed:
            self._stopping = reason
            if self._current is not None:
                self._current[1].set(reason)
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def healthy(self) -> bool:
        """Whether the thread lives and the job that it runs shows signs of life."""
        watch = self._watch
        return self._thread.is_alive() and (watch is None or time.monotonic() - watch.seen < self._hang)

    # The thread

    def _work(self) -> None:
        self._guarded(self._tell_again)
        self._guarded(self._clean_up)
        while (wanted := self._next()) is not None:
            if wanted:
                self._guarded(lambda: self._turn(wanted))
            else:
                self._guarded(self._catch_up)

    def _guarded(self, act: Callable[[], object]) -> None:
        """A door: whatever goes wrong with one job must not end the worker."""
        try:
            act()
        except Exception:
            LOG.exception("the worker goes on after an error")
            self._later()

    def _later(self) -> None:
        """Try again what did not work, in a while."""
        with self._changed:
            self._pause.longer()
            self._changed.notify_all()

    def _next(self) -> str | None:
        """The next job's id, as soon as there is one; empty when there is something to catch up with; None: stop."""
        with self._changed:
            while self._stopping is None:
                if self._queue:
                    return self._queue.popleft()
                if not self._changed.wait(self._pause.left()):
                    return ""
        return None

    def _catch_up(self) -> None:
        """Do again what did not work before."""
        with self._changed:
            self._pause.over()
        self._take_up()
        self._tell_ends()
        if self._unsettled is not None:
            self._clean_up()
        with self._changed:
            if self._pause.left() is None:
                self._pause = Pause()  # all is well again

    def _take_up(self) -> None:
        """Queue what waits by its record, and nowhere else."""
        with self._changed:
            waiting = [job.id for job in self._ledger.all() if job.state is State.QUEUED]
            self._queue.extend(wanted for wanted in waiting if wanted not in self._queue)

    def _clean_up(self) -> None:
        """End what dead agents left; what cannot be ended now is tried again later."""
        began = time.monotonic() if self._unsettled is None else self._unsettled
        self._unsettled = began
        try:
            self._settle(time.monotonic() - began > UNSURE)
            if not self._ledger.interrupted():
                self._unsettled = None
        except GuestagentError as error:
            LOG.error("cannot clean up after dead jobs: %s", error)
        if self._unsettled is not None:
            self._later()
        self._tell_ends()

    def _turn(self, wanted: str) -> None:
        """One job, from the queue to its end."""
        job, cancel = self._ledger.get(wanted), Cancel()
        if job.state is State.QUEUED:
            with self._changed:
                self._current = (job, cancel)
            try:
                self._run(job, cancel)
            finally:
                with self._changed:
                    self._current = None
        self._tell_ends()

    def _run(self, job: Job, cancel: Cancel) -> None:
        """Begin and end the job; its errors are the record's, and the log's."""
        try:
            with self._lock_for(job) as mine:
                if mine:
                    self._perform(job, cancel)
        except GuestagentError as error:
            LOG.error("%s: %s", job, error)
            failure = Failure.of(error)
            self._insist(lambda: self._ledger.fail(job.id, failure, state=State.QUEUED))

    def _perform(self, job: Job, cancel: Cancel) -> None:
        limit = self._limit()  # it may fail, and then the job has not begun
        begun = self._ledger.begin(job.id)
        if begun.state is not State.RUNNING:
            return  # cancelled at the last moment
        self._tell(begun)

        def story(watch: Watch) -> Outcome:
            self._watch = watch
            try:
                return self._story(begun, watch)
            finally:
                self._watch = None  # noting the end may take as long as the disk is full, and is no hang

        LOG.info("%s begins", begun)
        try:
            perform(
                self._ledger,
                begun,
                story,
                cancel=cancel,
                limit=limit,
                on_change=self._tell,
                insist=self._insist,
            )
        except GuestagentError:
            raise
        except Exception:  # noted in the record already
            LOG.exception("%s: this is a bug", begun)
        else:
            LOG.info("%s is done", begun)

    @contextmanager
    def _lock_for(self, job: Job) -> Iterator[bool]:
        """Hold the host's lock, as soon as no command of this host does; says whether the job is still to begin.

        A command that died, perhaps while we waited for it, is cleaned up after first.
        Nothing is lost by reading alone, so a verify needs no lock.
        """
        pause = Pause()
        with ExitStack() as stack:
            while self._stopping is None and self._ledger.get(job.id).state is State.QUEUED:
                self._check_deadline(job)
                if self._ledger.interrupted():
                    self._guarded(self._clean_up)
                try:
                    if job.kind is not Kind.VERIFY:
                        stack.enter_context(only_job(self._ledger.state_dir, str(job)))
                except Busy as error:
                    LOG.info("%s waits: %s", job, error.what)
                    pause.longer()
                    with self._changed:
                        self._changed.wait(pause.left())
                else:
                    yield True
                    return
        yield False

    def _insist(self, write: Callable[[], Job]) -> Job:
        """Write to the ledger; a full disk is waited for, since what was reached must not be forgotten."""
        pause = Pause()
        while True:
            try:
                return write()
            except (NotFound, Corrupt):
                raise  # somebody has taken the record away: there is nothing to wait for
            except GuestagentError as error:
                if self._stopping is not None:
                    raise
                LOG.error("cannot note how a job ended: %s", error)
            pause.longer()
            with self._changed:
                self._changed.wait(pause.left())

    # What others are told

    def _tell(self, job: Job) -> bool:
        """Whether whoever listens has taken it."""
        try:
            self._on_change(job)
        except GuestagentError as error:
            LOG.error("cannot tell that %s is %s: %s", job, job.state.value, error)
        except Exception:  # must neither end the job nor keep one from beginning
            LOG.exception("cannot tell that %s is %s", job, job.state.value)
        else:
            return True
        return False

    def _tell_ends(self) -> None:
        """Tell every end that nobody has heard of, each once; what cannot be told now is told later."""
        with self._telling:
            deaf = False
            for job in self._ledger.all():
                if job.state.ended and not job.told:
                    if self._tell(job):
                        self._ledger.tell(job.id)
                    else:
                        deaf = True
            if deaf:
                self._later()

    def _tell_again(self) -> None:
        """Tell the ends of late once more: whoever heard of them may have died before it wrote them down."""
        late = datetime.now(tz=UTC) - TOLD_AGAIN
        for job in self._ledger.all():
            if job.told and job.finished is not None and job.finished > late:
                self._tell(job)

    # What a request must be

    def _check_deadline(self, job: Job) -> None:
        """Raise Refused if it is too late for the job."""
        now = datetime.now(tz=UTC)
        if job.deadline is not None and now > job.deadline:
            raise Refused(f"the deadline of this request was {job.deadline:%Y-%m-%dT%H:%M:%SZ}", hint="send a new one")
        if now - job.created > self._wait_limit:
            raise Refused(f"this request has waited since {job.created:%Y-%m-%dT%H:%M:%SZ}", hint="send a new one")

    def _has_begun_with(self, wanted: str) -> bool:
        """Whether the thread runs that job, or waits for the host's lock to do so."""
        return self._current is not None and self._current[0].id == wanted

    def _check_room(self) -> None:
        if len(self._queue) >= self._queue_size:  # a command may have cancelled some
            waiting = {job.id for job in self._ledger.all() if job.state is State.QUEUED}
            self._queue = deque(wanted for wanted in self._queue if wanted in waiting)
        if len(self._queue) >= self._queue_size:
            what = f"is busy with {self._current[0]}" if self._current else "is not at work yet"
            raise Busy(f"this host {what}, and {len(self._queue)} jobs wait", hint="ask again later, or cancel some")

    def _is_known(self, job: Job) -> bool:
        try:
            self._ledger.get(job.id)
        except NotFound:
            return False
        return True
