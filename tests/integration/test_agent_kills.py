"""The agent killed in every phase of a backup: told once, nothing left, and what waited is done by the next one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guestagent.jobs.record import State
from tests.integration.running import (
    Writer,
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
    assert_idle,
    assert_only,
    assert_told_once,
    blocked,
    children,
    frozen,
    new_id,
    nobody_writes,
    settled,
    wait_for_record,
)
from tests.processes import is_gone
from tests.servers.agent import Agent, local_url, serving
from tests.servers.guest import PASSWORD, Guest
from tests.servers.mariadb import MariaDB, workplace


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
def agent(server: MariaDB) -> Iterator[Agent]:
    """An agent of that server, not started yet, with a new store and a new state."""
    with workplace() as place:
        url = local_url(place)
        guest = Guest(
            "guest1",
            server,
            place,
            f"file://{place}/store",
            settings=SETTINGS,
            database="lock_wait_timeout = 0\n",
            defaults=serving(url),
        )
        made = Agent(guest, url)
        try:
            yield made
        finally:
            made.kill()


def ask(agent: Agent, *, parent: str | None = None) -> str:
    """Ask for a backup; gives its id."""
    with agent.client() as client:
        return str(client.create(id=new_id(), name="asked", parent=parent)["id"])


def assert_failed_and_the_next_works(agent: Agent, victim: str, waiting: str, phase: str, *before: str) -> None:
    """The backup that ran is told once and swept, and the one that waited is made without being asked for again."""
    assert_told_once(agent, settled(agent, victim), phase)
    assert_the_next_works(agent, waiting, *before)


def assert_the_next_works(agent: Agent, waiting: str, *before: str) -> None:
    """The backup that waited is made, and stands alone with those from ``before``."""
    guest = agent.guest
    waited = agent.wait_until_told(waiting)
    assert waited.state is State.COMPLETED, waited.failure
    assert_only(guest, waiting, *before)
    assert_idle(guest)


def test_killed_in_the_preflight(agent: Agent) -> None:
    agent.start()
    with frozen(agent.guest.server.pid or 0):
        victim, waiting = ask(agent), ask(agent)
        wait_for_record(agent, victim, "preflight")
        agent.kill()
    assert_failed_and_the_next_works(agent, victim, waiting, "preflight")


def test_killed_before_the_tool_begins(agent: Agent) -> None:
    with holding(agent.guest.place, "--backup") as agent.environment:
        agent.start()
        victim, waiting = ask(agent), ask(agent)
        wait_for_held(agent.guest.place, "--backup")
        wait_for_record(agent, victim, "dump")
        agent.kill()
        wait_until(lambda: not children(agent.guest.place), "the tool has ended with the agent")
    assert_failed_and_the_next_works(agent, victim, waiting, "dump")


def test_killed_while_the_tool_copies_and_it_outlives_the_agent(agent: Agent) -> None:
    """The tool that the kernel ends with the agent has made processes of its own; the next agent finds them."""
    place = agent.guest.place
    script = (
        'case "$*" in *--backup*) ;; *) exec $real "$@";; esac\n'
        f'$real "$@" | {{ head -c 15000000; sleep 600 & echo $! >{place}/orphan; touch {place}/half; wait; cat; }}'
    )
    with tool_on_path(place, script) as agent.environment:
        agent.start()
        victim, waiting = ask(agent), ask(agent)
        wait_until((place / "half").exists, "half of it is copied")
        wait_until(lambda: objects(agent.guest), "some of it is stored")
        agent.kill()
        orphan = int((place / "orphan").read_text())
        # Alive, unless the agent of another test has started since: it ends whatever a dead guestagent has left.
        job = settled(agent, victim)
        assert is_gone(orphan)
        assert_told_once(agent, job, "dump")
        assert_the_next_works(agent, waiting)


def test_killed_while_the_tool_waits_for_a_lock(agent: Agent) -> None:
    agent.start()
    with Writer(agent.guest.server):
        victim, waiting = ask(agent), ask(agent)
        wait_for_lock(agent.guest.server)
        wait_until(lambda: objects(agent.guest), "some of it is stored")
        agent.kill()
        assert {name.split("/")[1] for name in objects(agent.guest)} == {victim}
    assert_failed_and_the_next_works(agent, victim, waiting, "dump")


def test_killed_before_the_manifest_is_written(agent: Agent) -> None:
    """The publish of an incremental looks at its parent's manifest, and is held there."""
    guest = agent.guest
    parent = guest.back_up()
    agent.start()
    with Writer(guest.server) as writer:
        victim, waiting = ask(agent, parent=parent.id), ask(agent, parent="latest")
        wait_for_lock(guest.server)
        with blocked(guest.place / "store" / "guest1" / parent.id / "manifest.json"):
            writer.end()
            wait_for_record(agent, victim, "publish")
            agent.kill()
    assert_failed_and_the_next_works(agent, victim, waiting, "publish", parent.id)


def test_killed_after_the_manifest_is_written(agent: Agent) -> None:
    """It is a backup, so it is told as one: nothing of it may be swept."""
    guest = agent.guest
    agent.start()
    with Writer(guest.server) as writer:
        victim, waiting = ask(agent), ask(agent, parent="latest")
        wait_for_lock(guest.server)
        with nobody_writes(guest.state):
            writer.end()
            wait_until((guest.place / "store" / "guest1" / victim / "manifest.json").exists, "the manifest is there")
            agent.kill()
    job = settled(agent, victim)
    assert job.state is State.COMPLETED
    with agent.client() as client:
        assert client.show(victim) == job.result
    waited = agent.wait_until_told(waiting)
    assert waited.result["parent_id"] == victim
    assert_only(guest, victim, waiting)
    assert_idle(guest)


def test_killed_at_moments_that_nobody_chose(agent: Agent) -> None:
    """One after the other, and also while the next agent is still on its way up."""
    guest = agent.guest
    agent.start()
    made: list[str] = []
    for phase in ("preflight", "dump", "publish"):
        victim = ask(agent, parent="latest" if made else None)
        agent.wait_for_phase(victim, phase)
        agent.kill()
        agent.start_and_kill(0.3 * len(phase) / len("preflight"))
        job = settled(agent, victim)
        assert job.state in (State.COMPLETED, State.FAILED)
        if job.state is State.COMPLETED:
            made.append(victim)
        else:
            assert DIED in str(job.failure)
        assert_only(guest, *made)
        assert_idle(guest)
    last = agent.wait_until_told(ask(agent, parent="latest" if made else None))
    assert last.state is State.COMPLETED, last.failure


def test_an_end_is_told_once_and_stays(agent: Agent) -> None:
    agent.start()
    with Writer(agent.guest.server):
        victim = ask(agent)
        wait_for_lock(agent.guest.server)
        agent.kill()
    job = settled(agent, victim)
    agent.kill()
    assert settled(agent, victim) == job
    assert_told_once(agent, job, "dump")
