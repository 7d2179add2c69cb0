"""What is asked of an agent while something else goes on: no request lost, none done twice, none obeyed too late."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from guestagent.errors import Busy, Refused
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Job, State
from tests.integration.running import (
    Running,
    Writer,
    held,
    holding,
    in_memory,
    objects,
    tool_on_path,
    wait_for_held,
    wait_for_lock,
    wait_until,
)
from tests.integration.serving import (
    DIED,
    SETTINGS,
    SMALL_DATA,
    assert_clear,
    assert_idle,
    assert_only,
    assert_told_once,
    new_id,
    wait_for_record,
)
from tests.servers.agent import Agent, local_url, serving
from tests.servers.guest import PASSWORD, Guest
from tests.servers.mariadb import MariaDB, workplace

SECONDS = 20.0
"""In which a cancel ends a job: a look of the worker, and the end of the tool; nothing else would end it so soon."""
DELAYS = (0.5, 2.0, 8.0, 32.0)
"""Seconds of which one suffices for a request to arrive."""

MakeAgent = Callable[..., Agent]


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    with MariaDB() as made:
        made.script(SMALL_DATA)
        made.backup_account("backup", PASSWORD)
        yield made


@pytest.fixture
def make_agent(server: MariaDB) -> Iterator[MakeAgent]:
    """Makes a running agent of that server, with a new store and a new state."""
    with ExitStack() as stack:

        def make(*, settings: str = "", environment: Callable[[Path], dict[str, str]] = lambda place: {}) -> Agent:
            place = stack.enter_context(workplace())
            url = local_url(place)
            guest = Guest(
                "guest1",
                server,
                place,
                f"file://{place}/store",
                settings=SETTINGS + settings,
                database="lock_wait_timeout = 0\n",
                defaults=serving(url),
            )
            return stack.enter_context(Agent(guest, url, environment=environment(place)))

        yield make


@pytest.fixture
def agent(make_agent: MakeAgent) -> Agent:
    return make_agent()


def ask(agent: Agent, *, id: str | None = None, name: str = "asked", deadline: datetime | None = None) -> str:
    """Ask for a full backup; gives its id."""
    with agent.client() as client:
        return str(client.create(id=id or new_id(), name=name, deadline=deadline)["id"])


def ask_in_time(agent: Agent) -> tuple[str, datetime]:
    """Ask with a deadline that is over soon, though not before the request is there; gives the id and the deadline."""
    for delay in DELAYS:
        deadline = datetime.now(UTC) + timedelta(seconds=delay)
        with suppress(Refused):
            return ask(agent, deadline=deadline), deadline
    raise AssertionError(f"a request takes more than {DELAYS[-1]:g} s")


def state(agent: Agent, job_id: str) -> State:
    return agent.ledger.get(job_id).state


def completed(agent: Agent, job_id: str) -> Job:
    """A job at its end, which must be a good one."""
    job = agent.wait_until_told(job_id)
    assert job.state is State.COMPLETED, job.failure
    return job


# -- two at once


def test_one_runs_and_one_waits(agent: Agent) -> None:
    with Writer(agent.guest.server):
        first = ask(agent)
        wait_for_lock(agent.guest.server)
        second = ask(agent)
        assert (state(agent, first), state(agent, second)) == (State.RUNNING, State.QUEUED)
        with agent.client() as client:
            assert client.ping()["job"]["id"] == first
    ends = [completed(agent, job_id) for job_id in (first, second)]
    assert ends[0].finished
    assert ends[1].started
    assert ends[0].finished <= ends[1].started
    assert_only(agent.guest, first, second)
    assert_idle(agent.guest)


def test_two_that_ask_at_the_same_time_are_both_obeyed(agent: Agent) -> None:
    wanted = [new_id() for _ in range(4)]
    askers = [threading.Thread(target=ask, args=(agent,), kwargs={"id": one}) for one in wanted for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    spans = [(job.started, job.finished) for job in (completed(agent, one) for one in wanted)]
    moments = [moment for span in sorted(spans) for moment in span if moment]
    assert len(moments) == 2 * len(wanted)
    assert moments == sorted(moments)
    assert len(agent.ledger.all()) == len(wanted)
    assert_only(agent.guest, *wanted)


def test_too_many_are_told_of_the_one_that_runs(make_agent: MakeAgent) -> None:
    agent = make_agent(settings="[jobs]\nqueue_size = 1\n")
    with Writer(agent.guest.server):
        first = ask(agent)
        wait_for_lock(agent.guest.server)
        second = ask(agent)
        with pytest.raises(Busy, match=f"busy with backup {first}, and 1 jobs wait"):
            ask(agent)
        with agent.client() as client:
            assert client.cancel(second)["state"] == "cancelled"
        third = ask(agent)
    assert completed(agent, third).result["id"] == third
    assert len(agent.ledger.all()) == len([first, second, third])
    assert_only(agent.guest, first, third)


# -- the same again


def test_the_same_request_again_is_the_same_job_also_after_a_crash(agent: Agent) -> None:
    wanted = new_id()
    with Writer(agent.guest.server):
        assert ask(agent, id=wanted) == wanted
        wait_for_lock(agent.guest.server)
        with agent.client() as client:
            assert client.create(id=wanted, name="asked")["state"] == "running"
        with pytest.raises(Refused, match=f"id {wanted} is taken by another request"):
            ask(agent, id=wanted, name="another")
        waiting = ask(agent)
        assert ask(agent, id=waiting) == waiting
        agent.kill()
    agent.start()
    assert_told_once(agent, agent.wait_until_told(wanted), "dump")
    for job_id, expected in ((wanted, "failed"), (completed(agent, waiting).id, "completed")):
        with agent.client() as client:
            assert client.create(id=job_id, name="asked")["state"] == expected
    assert len(agent.ledger.all()) == len([wanted, waiting])
    assert_only(agent.guest, waiting)


def test_what_waits_outlives_a_crash_and_a_stop(agent: Agent) -> None:
    with held(agent.guest.server, "LOCK TABLES d.my WRITE"):
        first, *waiting = (ask(agent, name=str(number)) for number in range(4))
        wait_for_lock(agent.guest.server)
        agent.kill()
        agent.start()
        agent.wait_until_told(first)
        wait_until(lambda: state(agent, waiting[0]) is State.RUNNING, "the first that waited runs")
        assert agent.terminate() == 0
    assert [state(agent, one) for one in waiting] == [State.CANCELLED, State.QUEUED, State.QUEUED]
    agent.start()
    for one in waiting[1:]:
        completed(agent, one)
    assert [job.request["name"] for job in agent.ledger.all()] == ["0", "1", "2", "3"]
    assert_only(agent.guest, *waiting[1:])
    assert_idle(agent.guest)


# -- too late


def test_a_deadline_that_passes_while_it_waits(agent: Agent) -> None:
    with Writer(agent.guest.server):
        first = ask(agent)
        wait_for_lock(agent.guest.server)
        late, deadline = ask_in_time(agent)
        in_time = ask(agent, deadline=datetime.now(UTC) + timedelta(minutes=5))
        wait_until(lambda: datetime.now(UTC) > deadline, "the deadline is over")
    completed(agent, first)
    refused = agent.wait_until_told(late)
    assert (refused.state, refused.started) == (State.FAILED, None)
    assert refused.failure
    assert refused.failure.code == "refused"
    assert refused.failure.what.startswith("the deadline of this request was ")
    completed(agent, in_time)
    with pytest.raises(Refused, match="the deadline of this request was"):
        ask(agent, deadline=datetime.now(UTC) - timedelta(seconds=2))
    assert_only(agent.guest, first, in_time)


def test_a_request_that_is_a_week_old_is_not_obeyed(agent: Agent) -> None:
    with Writer(agent.guest.server):
        first = ask(agent)
        wait_for_lock(agent.guest.server)
        old, young = ask(agent), ask(agent)
        agent.kill()
    path = agent.guest.state / "jobs" / f"{old}.json"
    record = Job.from_bytes(path.read_bytes())
    path.write_bytes(replace(record, created=record.created - timedelta(days=7)).to_bytes())
    agent.start()
    refused = agent.wait_until_told(old)
    assert (refused.state, refused.started) == (State.FAILED, None)
    assert refused.failure
    assert refused.failure.code == "refused"
    assert refused.failure.what.startswith("this request has waited since ")
    completed(agent, young)
    assert state(agent, first) is State.FAILED
    assert_only(agent.guest, young)


# -- commands beside the agent


def test_a_command_while_the_agent_works_is_told_what_runs(agent: Agent) -> None:
    guest = agent.guest
    with Writer(guest.server):
        first = ask(agent)
        wait_for_lock(guest.server)
        done = guest.command("backup", "create")
        assert done.returncode == 7
        assert f"this host is busy with backup {first} (pid {agent.pid})" in done.stderr
        assert [row["state"] for row in guest.json("job", "list")] == ["running"]
    completed(agent, first)
    assert_only(guest, first)


def test_the_agent_waits_while_a_command_works(agent: Agent) -> None:
    guest = agent.guest
    with Writer(guest.server) as writer, Running(guest, "backup", "create", "--id", (by_hand := new_id())) as command:
        wait_for_lock(guest.server)
        asked = ask(agent)
        wait_until(lambda: f"backup {asked} waits: this host is busy with backup {by_hand}" in agent.log, "it waits")
        assert state(agent, asked) is State.QUEUED
        writer.end()
        assert command.finish() == 0, command.err
    began = time.monotonic()
    completed(agent, asked)
    assert time.monotonic() - began < SECONDS
    assert [row["origin"] for row in guest.json("job", "list")] == ["cli", "rpc"]
    assert_only(guest, by_hand, asked)


def test_a_command_that_is_killed_beside_the_agent(agent: Agent) -> None:
    """The agent notes its end, and cleans up, as soon as it has the host to itself."""
    guest = agent.guest
    with Writer(guest.server), Running(guest, "backup", "create", "--id", (by_hand := new_id())) as command:
        wait_for_lock(guest.server)
        asked = ask(agent)
        command.signal(signal.SIGKILL)
    completed(agent, asked)
    assert state(agent, by_hand) is State.FAILED
    assert_only(guest, asked)
    assert_idle(guest)


def test_a_command_cancels_what_the_agent_runs_and_what_waits(agent: Agent) -> None:
    guest = agent.guest
    with Writer(guest.server):
        first, second = ask(agent), ask(agent)
        wait_for_lock(guest.server)
        assert guest.json("job", "cancel", second)["state"] == "cancelled"
        assert guest.json("job", "cancel", first)["state"] == "running"
        asked = time.monotonic()
        job = agent.wait_for(first)
        assert time.monotonic() - asked < SECONDS
    assert job.state is State.CANCELLED
    assert job.failure
    assert "guestagent job cancel" in job.failure.what
    assert agent.wait_until_told(second).started is None
    assert_only(guest)
    assert_idle(guest, first)
    completed(agent, ask(agent))


# -- SIGTERM


def assert_stops(agent: Agent, job_id: str) -> None:
    """A stop cancels the job, says so in its record, and leaves nothing."""
    began = time.monotonic()
    assert agent.terminate() == 0
    assert time.monotonic() - began < 2 * SECONDS
    job = agent.ledger.get(job_id)
    assert job.state is State.CANCELLED
    assert job.failure
    assert job.failure.what == "stopped by SIGTERM"
    assert job.told
    assert_idle(agent.guest, job_id)
    assert_only(agent.guest)


def test_a_stop_while_the_tool_copies(make_agent: MakeAgent) -> None:
    with ExitStack() as stack:
        slow_and_deaf = 'trap "" TERM; $real "$@" | (head -c 15000000; sleep 600)'
        script = f'case "$*" in *--backup*) {slow_and_deaf};; *) exec $real "$@";; esac'
        agent = make_agent(environment=lambda place: stack.enter_context(tool_on_path(place, script)))
        job_id = ask(agent)
        wait_until(lambda: objects(agent.guest), "some of it is stored")
        assert_stops(agent, job_id)


def test_a_stop_while_the_tool_waits_for_a_lock(agent: Agent) -> None:
    with Writer(agent.guest.server):
        job_id = ask(agent)
        wait_for_lock(agent.guest.server)
        assert_stops(agent, job_id)


def test_a_stop_during_a_prepare(make_agent: MakeAgent) -> None:
    with ExitStack() as stack:
        agent = make_agent(environment=lambda place: stack.enter_context(holding(place, "--prepare")))
        guest = agent.guest
        backup = guest.back_up()
        before = guest.server.content()
        with agent.client() as client:
            job_id = str(client.restore(backup.id, id=new_id(), replace=True)["id"])
        wait_for_held(guest.place, "--prepare")
        wait_for_record(agent, job_id, "prepare")
        began = time.monotonic()
        assert agent.terminate() == 0
        assert time.monotonic() - began < 3 * SECONDS
    job = agent.ledger.get(job_id)
    assert (job.state, job.phase, job.told) == (State.CANCELLED, "prepare", True)
    assert_idle(guest)
    assert_clear(guest.server.datadir)
    assert guest.server.content() == before


def test_a_storm_of_signals_is_one(agent: Agent) -> None:
    with Writer(agent.guest.server):
        job_id = ask(agent)
        wait_for_lock(agent.guest.server)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM) * 5:
            agent.signal(number)
        assert_stops(agent, job_id)
    assert DIED not in agent.log


def test_no_lock_is_held_by_an_agent_that_only_waits(agent: Agent) -> None:
    completed(agent, ask(agent))  # what dead jobs left is swept by then, under the lock
    with only_job(agent.guest.state, "test"):
        asked = ask(agent)
        wait_until(lambda: f"backup {asked} waits: this host is busy with test" in agent.log, "it waits")
        with agent.client() as client:
            assert client.cancel(asked)["state"] == "cancelled"
    assert agent.wait_until_told(asked).started is None
    completed(agent, ask(agent))
