"""A guest that is tortured: its server, its agent, what its backups hold, and what must be true after each round."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from guestagent.datadir import layout
from guestagent.errors import GuestagentError
from guestagent.jobs.record import Job, State
from guestagent.model import backup_id
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from tests.integration.running import Running, drop_halves, objects, wait_until
from tests.integration.serving import DIED, assert_clear, assert_idle, children, new_id
from tests.integration.test_faults_restore import Content, found_after_kill
from tests.servers.agent import Agent, local_url, serving
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace
from tests.torture.plans import ON_THE_WAY_UP, SWAP, Ask, End, Plan, make_plan
from tests.torture.soak import Record

DATA = """
CREATE DATABASE d; USE d;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO t (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_2000;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;
CREATE TABLE rounds (id INT PRIMARY KEY) ENGINE=InnoDB;
"""
SETTINGS = "[stream]\nsegment_size = 1M\nlevel = 1\nno_progress_limit = 60\n[jobs]\nhistory = 100000\n"
LOOKS, BETWEEN_LOOKS = 100, 0.0001
"""A swap of so little data in memory takes some milliseconds."""
SERVER_DOWN = {"database", "refused", "tool", "failed"}
"""How jobs may fail after a restore that died with the server down."""


@dataclass(frozen=True)
class Known:
    """A backup that is COMPLETED: what a restore of it must give."""

    content: Content
    parent: str | None


@dataclass
class Asked:
    """A request that was sent; ``sure`` once it was accepted."""

    ask: Ask
    id: str
    subject: str | None
    sure: bool = False


@dataclass
class Victim:
    """``continues`` is the backup that the present data continue."""

    agent: Agent
    seed: str
    known: dict[str, Known] = field(default_factory=dict)
    continues: str | None = None
    ended: dict[str, bytes] = field(default_factory=dict)
    record: Record = field(default_factory=lambda: Record("kills", 0))

    @property
    def guest(self) -> Guest:
        return self.agent.guest

    def round(self, number: int) -> None:
        """One round: ask, end the agent or not, start it again, and look at everything."""
        plan = make_plan(self.seed, number, backups=len(self.known), chain=len(self._chain(self.continues)))
        self.record.runs += 1
        self.record.faulted += plan.end is not End.NONE
        try:
            self._play(plan)
        except Exception as error:
            self.record.wrong.append(f"seed {self.seed}, {plan}: {type(error).__name__} {error}".partition("\n")[0])
            error.add_note(f"seed {self.seed}, {plan}\n{self.agent.log[-4000:]}")
            raise

    def _play(self, plan: Plan) -> None:
        before = self._write(plan.number)
        asked = [Asked(ask, new_id(), self._subject(plan, ask)) for ask in plan.asks]
        if plan.end is End.COMMAND:
            self._beside_a_command(plan, asked)
        else:
            self._under_fire(plan, asked)
        jobs = [self.agent.wait_until_told(one.id) for one in asked]
        after = self._data()
        self._learn(plan, asked, jobs, before=before, after=after)
        self._look_around(jobs)

    # -- before

    def _write(self, number: int) -> Content:
        """Make the data unlike those of any backup; gives them."""
        server = self.guest.server
        server.query("INSERT INTO d.rounds VALUES (%s)", number)
        server.query("REPLACE INTO d.my VALUES (%s, 'my')", number % 50)
        server.query("UPDATE d.t SET v = RANDOM_BYTES(1024) WHERE id %% 20 = %s", number % 20)
        return server.content()

    def _subject(self, plan: Plan, ask: Ask) -> str | None:
        """The backup that a request is about: the parent of an incremental, or one out of all."""
        if ask is Ask.FULL:
            return None
        if ask is Ask.INCREMENTAL:
            return self.continues if plan.explicit else "latest"
        return list(self.known)[int(plan.pick * len(self.known))] if self.known else None

    def _chain(self, tip: str | None) -> list[str]:
        found = []
        while tip is not None:
            found.append(tip)
            tip = self.known[tip].parent
        return found

    # -- meanwhile

    def _send(self, one: Asked) -> None:
        with self.agent.client() as client:
            if one.ask in (Ask.FULL, Ask.INCREMENTAL):
                client.create(id=one.id, name=one.ask.value, parent=one.subject)
            elif one.ask is Ask.RESTORE:
                client.restore(one.subject or one.id, id=one.id, replace=True, start=True)
            elif one.ask is Ask.VERIFY:
                client.verify(one.subject or one.id, id=one.id)
            else:
                client.delete(one.subject or one.id, cascade=True, id=one.id)
        one.sure = True

    def _under_fire(self, plan: Plan, asked: list[Asked]) -> None:
        ender = threading.Thread(target=self._end, args=(plan, asked[0].id))
        ender.start()
        for one in asked:
            with suppress(GuestagentError):
                self._send(one)
        ender.join()
        if plan.end is End.TWICE:
            self.agent.start_and_kill(ON_THE_WAY_UP * plan.pick)
        if plan.end is not End.NONE:
            self.agent.start()
        for one in asked:
            if one.sure:
                self.agent.ledger.get(one.id)  # what was accepted is there
            self._send(one)  # a second time it is the same

    def _end(self, plan: Plan, first: str) -> None:
        if plan.phase == SWAP:
            self._wait_for_swap(first)
        elif plan.phase:
            self.agent.wait_for_phase(first, plan.phase)
        time.sleep(plan.seconds)
        if plan.end in (End.KILL, End.TWICE):
            self.agent.kill()
        elif plan.end is End.STOP:
            status = self.agent.terminate()
            assert status == 0, f"the agent ended with {status}"

    def _wait_for_swap(self, first: str) -> None:
        """Wait until the journal of a swap is there, or it is too late for that."""
        self.agent.wait_for_phase(first, "stop", "start")
        journal = layout.ours(self.guest.server.datadir) / layout.JOURNAL
        while self.agent.wait_for_phase(first, "stop", "start") == "stop":
            for _ in range(LOOKS):
                if journal.exists():
                    return
                time.sleep(BETWEEN_LOOKS)

    def _beside_a_command(self, plan: Plan, asked: list[Asked]) -> None:
        first, *others = asked
        with Running(self.guest, *_typed(first)) as command:
            time.sleep(plan.seconds)
            with suppress(ProcessLookupError):
                command.signal(signal.SIGKILL)
        by_hand = self.agent.ledger.all()  # its own records: it is dead
        for one in others:
            self._send(one)
            self.agent.wait_until_told(one.id)
        if first.ask is Ask.RESTORE:  # a command gives a restore's job an id of its own
            found = [job.id for job in by_hand if job.id not in self.ended]
            first.id = found[0] if found else ""
        elif not any(job.id == first.id for job in by_hand):
            first.id = ""
        if not first.id:
            asked.remove(first)  # it died before it began

    # -- afterwards

    def _data(self) -> Content:
        """What the server has, which must be something."""
        guest = self.guest
        wait_until(lambda: not children(guest.place), "the operator's commands have ended")
        found = found_after_kill(guest)
        assert found is not None, f"no server starts on what is left: {guest.server.log_tail()}"
        return found

    def _learn(self, plan: Plan, asked: list[Asked], jobs: list[Job], *, before: Content, after: Content) -> None:
        """Each job's end must fit what is there now; then that is what we know."""
        restored = next((one.subject for one in asked if one.ask is Ask.RESTORE), None)
        legal = [before, self.known[restored].content] if restored else [before]
        assert after in legal, "the data are neither the old nor the new"
        present, excused = before, False
        for one, job in zip(asked, jobs, strict=True):
            self.record.count(f"{one.ask.value}, {plan.end.value}", "jobs", job.state.value.lower(), *_where(job))
            self._check_end(plan, job, excused=excused)
            if one.ask is Ask.RESTORE:
                present = after
                excused = job.state is not State.COMPLETED
                assert excused or after != before, "a restore that is COMPLETED has not given its data"
                self.continues = self.continues if after == before else restored
            self._note(one, job, present)

    def _check_end(self, plan: Plan, job: Job, *, excused: bool) -> None:
        """A job fails because its process died, or was stopped, and for nothing else."""
        if job.state is State.COMPLETED:
            return
        assert job.failure is not None
        died = job.state is State.FAILED and job.failure.what.startswith(DIED) and plan.end is not End.NONE
        stopped = job.state is State.CANCELLED and plan.end is End.STOP
        down = excused and job.state is State.FAILED and job.failure.code in SERVER_DOWN
        assert died or stopped or down, f"{job}: {job.failure}"
        if down and not died:
            self.record.count(f"{Ask.RESTORE.value}, {plan.end.value}", "then the server was down")

    def _note(self, one: Asked, job: Job, present: Content) -> None:
        done = job.state is State.COMPLETED
        if one.ask in (Ask.FULL, Ask.INCREMENTAL) and done:
            parent = job.result["parent_id"]
            assert one.subject in (None, "latest", parent)
            self.known[one.id] = Known(present, parent)
            self.continues = one.id
            self._verify(one.id)
        if one.ask is Ask.DELETE:
            self._forget(done=done, wanted=one.subject or "")

    def _verify(self, wanted: str) -> None:
        host = self.guest.host()
        with host.catalog:
            verify(host, backup_id(wanted), Watch())

    def _forget(self, *, done: bool, wanted: str) -> None:
        """What was deleted, or half of it: whatever is left must be whole chains."""
        gone = {one for one in self.known if wanted in self._chain(one)}
        left = set(self.known) & self._manifests()
        assert set(self.known) - left <= gone
        assert not done or not left & gone
        for one in left:
            assert set(self._chain(one)) <= left, f"{one} has lost its parent"
        chain = self._chain(self.continues)
        self.known = {one: known for one, known in self.known.items() if one in left}
        self.continues = next((one for one in chain if one in left), None)

    def _manifests(self) -> set[str]:
        return {name.split("/")[1] for name in objects(self.guest) if name.endswith("/manifest.json")}

    def _look_around(self, jobs: list[Job]) -> None:
        """Nothing is left of anything, no record has changed after its end, and nothing waits."""
        guest = self.guest
        failed = [job.id for job in self.agent.ledger.all() if job.state in (State.FAILED, State.CANCELLED)]
        assert_idle(guest, *failed)
        assert_clear(guest.server.datadir)
        drop_halves(guest)
        assert {name.split("/")[1] for name in objects(guest)} == set(self.known)
        assert self._manifests() == set(self.known)
        for job in self.agent.ledger.all():
            assert job.state.ended, f"stuck: {job}"
            record = job.to_bytes()
            if job.told:
                assert self.ended.setdefault(job.id, record) == record
        for job in jobs:
            assert self.agent.log.count(f"{job.id}: {DIED}") + self.agent.log.count(f"{job.id}): {DIED}") <= 1


def _where(job: Job) -> list[str]:
    if job.failure is None:
        return []
    return [f"in {'swap' if ' swap in ' in job.failure.what else job.phase or 'no phase yet'}"]


def _typed(one: Asked) -> list[str]:
    if one.ask is Ask.RESTORE:
        return ["restore", one.subject or "", "--replace", "--start"]
    parent = ["--parent", one.subject] if one.subject else []
    return ["backup", "create", one.ask.value, "--id", one.id, *parent]


@contextmanager
def victim(name: str, seed: int) -> Iterator[Victim]:
    """A guest with some data, and its agent at work."""
    with workplace() as place, MariaDB() as server:
        yield from _served(name, seed, place, server)


def _served(name: str, seed: int, place: Path, server: MariaDB) -> Iterator[Victim]:
    server.script(DATA)
    url = local_url(place)
    guest = Guest(name, server, place, f"file://{place}/store", settings=SETTINGS, defaults=serving(url))
    guest.account()
    with Agent(guest, url) as agent:
        yield Victim(agent, f"{seed}/{name}")
