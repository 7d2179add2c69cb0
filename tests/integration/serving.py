"""Agents that serve while something is done to them: where they are held, and what may not be left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guestagent.datadir import layout
from guestagent.errors import Busy
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Job, State
from guestagent.model import backup_id
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from tests.integration.running import drop_halves, objects, tools, wait_until
from tests.servers.agent import Agent
from tests.servers.guest import Guest

DIED = "the process that ran it died"
SETTINGS = "[stream]\nsegment_size = 1M\nlevel = 1\nno_progress_limit = 60\n"
SMALL_DATA = """
CREATE DATABASE d; USE d;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO t (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_3000;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;
INSERT INTO my SELECT seq, 'my' FROM seq_1_to_100;
"""
"""Has ``d.my``, at which a Writer holds the tool."""


def new_id() -> str:
    """The id of a request."""
    return str(uuid.uuid4())


def children(place: Path) -> dict[int, str]:
    """The living processes of a guest below ``place``, other than servers, agents and ours."""
    return {pid: command for pid, command in tools(place).items() if not command.rstrip().endswith(" serve")}


# -- held where one wants them


@contextmanager
def blocked(path: Path) -> Iterator[None]:
    """Who opens the object at ``path`` to read it waits for ever; it is as before at the end."""
    aside = path.with_name(f".{path.name}")  # no name of an object
    path.rename(aside)
    os.mkfifo(path)
    try:
        yield
    finally:
        aside.replace(path)


@contextmanager
def leased(path: Path) -> Iterator[Callable[[], bool]]:
    """Who opens the file at ``path`` waits, for 45 s at the most; it can be listed, and has its size.

    Gives what tells whether somebody waits.
    """
    heard = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel tells that somebody waits
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: fcntl.fcntl(handle, fcntl.F_GETLEASE) != fcntl.F_WRLCK
    finally:
        os.close(handle)
        signal.signal(signal.SIGIO, heard)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does nothing inside."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def nobody_writes(state: Path) -> Iterator[None]:
    """No job's record can be changed inside."""
    handle = os.open(state / "jobs" / ".lock", os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Gate:
    """A command of the operator's that waits while the gate is closed, and then does what ``real`` does."""

    def __init__(self, place: Path, name: str, real: Path) -> None:
        self.script = place / f"gated-{name}"
        self._closed = place / f"{name}.closed"
        self._reached = place / f"{name}.reached"
        self.script.write_text(
            f"#!/bin/sh\ntouch {self._reached}\n"
            f"while [ -e {self._closed} ]; do sleep 0.02; done\nrm {self._reached}\nexec {real}\n"
        )
        self.script.chmod(0o755)

    def close(self) -> None:
        """Hold the next one."""
        self._closed.touch()

    def open(self) -> None:
        """Let it through."""
        self._closed.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until somebody waits there."""
        wait_until(self._reached.exists, f"{self.script.name} is run")


def wait_for_record(agent: Agent, job_id: str, phase: str) -> None:
    """Wait until the record of a job that is held in ``phase`` says so, for whoever comes after a crash."""
    wait_until(lambda: agent.ledger.get(job_id).phase == phase, f"job {job_id} is in {phase}", pause=0.002)


# -- what must hold afterwards


def settled(agent: Agent, job_id: str) -> Job:
    """Start a killed agent anew, with nothing in its way; gives what it then says of a job."""
    agent.environment = {}
    agent.start()
    return agent.wait_until_told(job_id)


def _is_free(state: Path) -> bool:
    try:
        with only_job(state, "test"):
            return True
    except Busy:
        return False


def assert_idle(guest: Guest, *failed: str) -> None:
    """No child of a job alive, the host's lock free, nothing in state_dir that a job needs while it runs.

    The marks of backups that ``failed`` since the last sweep may be there: a put may come late.
    """
    wait_until(lambda: not children(guest.place), f"the children end: {children(guest.place)}")
    wait_until(lambda: _is_free(guest.state), "the host's lock is free")  # an agent that has just started sweeps
    assert list((guest.state / "scratch").glob("*")) == []
    assert {path.name for path in (guest.state / "unfinished").glob("*")} <= set(failed)
    assert {path.suffix for path in (guest.state / "jobs").iterdir()} <= {".json", ""}


def assert_only(guest: Guest, *backups: str) -> None:
    """The store holds these backups and nothing else, whole to the last byte."""
    drop_halves(guest)
    assert {name.split("/")[1] for name in objects(guest)} == set(backups)
    host = guest.host()
    with host.catalog:
        for wanted in backups:
            verify(host, backup_id(wanted), Watch())


def assert_clear(datadir: Path) -> None:
    """No restore is under way in a datadir; old data may be kept."""
    names = {path.name for path in layout.named(datadir, "")}
    assert all(name == "README" or name.startswith(layout.KEPT) for name in names), names


def assert_told_once(agent: Agent, job: Job, phase: str) -> None:
    """The job failed as its process died in ``phase``, and whoever listens was told so once."""
    assert job.state is State.FAILED
    assert job.failure is not None
    assert job.failure.what.startswith(f"{DIED} in phase {phase}"), job.failure
    assert job.phase == phase
    assert job.told
    assert agent.log.count(f"(job {job.id}): {DIED}") + agent.log.count(f"{job.id}: {DIED}") == 1
