"""The agent killed in every phase of a restore: told once, all clear, the data the old or the new, and on it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from guestagent.jobs.record import State
from guestagent.manifest import Backup
from tests.integration.running import (
    holding,
    in_memory,
    slow_moves,
    step,
    wait_for_held,
    wait_until,
)
from tests.integration.serving import (
    SETTINGS,
    SMALL_DATA,
    Gate,
    assert_clear,
    assert_idle,
    assert_told_once,
    blocked,
    children,
    leased,
    new_id,
    nobody_writes,
    settled,
    wait_for_record,
)
from tests.integration.test_faults_restore import OURS, Content, _phase_of, found_after_kill
from tests.processes import is_gone
from tests.servers.agent import Agent, local_url, serving
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@dataclass(frozen=True)
class Source:
    """Two backups that differ, and what each of them holds."""

    guest: Guest
    full: Backup
    tip: Backup
    at_full: Content
    at_tip: Content

    def other_than(self, content: Content) -> tuple[Backup, Content]:
        """The backup that is not what a server has now."""
        return (self.full, self.at_full) if content == self.at_tip else (self.tip, self.at_tip)


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    with workplace() as place, MariaDB() as server:
        guest = Guest("guest1", server, place, f"file://{place}/store", settings=SETTINGS)
        guest.account()
        server.script(SMALL_DATA)
        full, at_full = guest.back_up(), server.content()
        server.script("USE d; DELETE FROM t WHERE id % 3 = 0; INSERT INTO my VALUES (1000, 'more'); CREATE DATABASE e;")
        tip, at_tip = guest.back_up(full), server.content()
        server.stop()
        yield Source(guest, full, tip, at_full, at_tip)


@dataclass(frozen=True)
class Target:
    """An agent of a server that runs with one of the two, and the gates in front of its start and its stop."""

    agent: Agent
    start: Gate
    stop: Gate

    @property
    def guest(self) -> Guest:
        return self.agent.guest


@pytest.fixture(scope="module")
def whole_target(source: Source) -> Iterator[Target]:
    with workplace() as place, MariaDB(datadir=place / "data", running=False) as server:
        start = Gate(place, "start", server.start_script())
        stop = Gate(place, "stop", server.stop_script())
        url = local_url(place)
        guest = Guest(
            "guest2",
            server,
            place,
            source.guest.url,
            database=f"start_command = {start.script}\nstop_command = {stop.script}\n",
            defaults=serving(url),
        )
        guest.restore(source.full, start=True)
        agent = Agent(guest, url)
        try:
            yield Target(agent, start, stop)
        finally:
            agent.kill()


@pytest.fixture
def target(source: Source, whole_target: Target) -> Iterator[Target]:
    """The target, made whole again after a test that did not do so itself."""
    yield whole_target
    whole_target.agent.kill()
    for gate in (whole_target.start, whole_target.stop):
        gate.open()
    if found_after_kill(whole_target.guest) not in (source.at_full, source.at_tip):
        whole_target.guest.restore(source.full, replace=True, start=True)


@dataclass
class Order:
    """A restore under way in a target that has ``old``, of a backup that holds ``new``."""

    target: Target
    source: Source

    def __post_init__(self) -> None:
        self.old: Content = self.target.guest.server.content()
        self.wanted, self.new = self.source.other_than(self.old)
        self.agent = self.target.agent
        self.agent.kill()
        self.agent.start()
        self.id = self.ask()

    def ask(self) -> str:
        with self.agent.client() as client:
            return str(client.restore(self.wanted.id, id=new_id(), replace=True, start=True)["id"])

    def die(self) -> None:
        """Kill the agent, and let go what was held."""
        self.agent.kill()
        for gate in (self.target.start, self.target.stop):
            gate.open()

    def assert_clear(self, phase: str, *allowed: Content) -> None:
        """Told once, all clear, the data one of ``allowed``; and the same restore then works, and is told as done."""
        guest = self.target.guest
        wait_until(lambda: not children(guest.place), "the operator's commands have ended")
        assert_told_once(self.agent, settled(self.agent, self.id), phase)
        assert_clear(guest.server.datadir)
        assert_idle(guest)
        assert found_after_kill(guest) in allowed
        again = self.agent.wait_until_told(self.ask())
        assert again.state is State.COMPLETED, again.failure
        assert guest.server.content() == self.new
        assert not (guest.server.datadir / OURS).exists()
        assert_idle(guest)


def test_killed_in_the_plan(source: Source, target: Target) -> None:
    with blocked(source.guest.place / "store" / "guest1" / source.full.id / "manifest.json"):
        order = Order(target, source)
        wait_for_record(order.agent, order.id, "plan")
        order.die()
    order.assert_clear("plan", order.old)


def test_killed_in_the_fetch(source: Source, target: Target) -> None:
    with leased(source.guest.place / "store" / "guest1" / source.full.id / "data" / "00000000"):
        order = Order(target, source)
        wait_for_record(order.agent, order.id, "fetch")
        order.die()
    order.assert_clear("fetch", order.old)


@pytest.mark.parametrize("words", [("--prepare",), ("--prepare", "--incremental-dir")], ids=["base", "link"])
def test_killed_in_a_prepare(source: Source, target: Target, words: tuple[str, ...]) -> None:
    if target.guest.server.content() == source.at_tip:  # the base alone has no link to prepare
        target.guest.restore(source.full, replace=True, start=True)
    target.stop.close()  # so that the prepare may even end meanwhile
    with holding(target.guest.place, *words) as target.agent.environment:
        order = Order(target, source)
        tool = wait_for_held(target.guest.place, words[-1])
        wait_for_record(order.agent, order.id, "prepare")
        step(tool, 0.005)
        order.die()
        wait_until(lambda: is_gone(tool), "the tool has ended with the agent")
    order.assert_clear(order.agent.ledger.get(order.id).phase, order.old)


def test_killed_while_the_server_stops(source: Source, target: Target) -> None:
    target.stop.close()
    order = Order(target, source)
    target.stop.wait()
    wait_for_record(order.agent, order.id, "stop")
    order.die()
    order.assert_clear("stop", order.old)


def test_killed_while_the_server_starts(source: Source, target: Target) -> None:
    target.start.close()
    order = Order(target, source)
    target.start.wait()
    wait_for_record(order.agent, order.id, "start")
    order.die()
    order.assert_clear("start", order.new)


def test_killed_after_the_hand_over(source: Source, target: Target) -> None:
    """The new server has answered, and nobody could note it."""
    target.start.close()
    order = Order(target, source)
    target.start.wait()
    wait_for_record(order.agent, order.id, "start")
    with nobody_writes(target.guest.state):
        target.start.open()
        wait_until(lambda: not (target.guest.server.datadir / OURS).exists(), "the old data are gone")
        order.die()
    order.assert_clear("start", order.new)


def in_seal(order: Order) -> bool:
    """When all is prepared; gives that it is not in the swap."""
    order.agent.wait_for_phase(order.id, "seal")
    return False


def in_swap(*phases: str) -> Callable[[Order], bool]:
    """When the swap's journal is in one of ``phases``, or has just gone; found by steps of a moment each."""

    def reach(order: Order) -> bool:
        server = order.target.guest.server
        order.agent.wait_for_phase(order.id, "stop")
        wait_until(lambda: not server.running, "the server is down", pause=0.001)
        journal, seen = server.datadir / OURS / "journal.json", [""]

        def arrived() -> bool:
            alive = step(order.agent.pid, 0.001)
            seen.append(_phase_of(journal))
            return not alive or seen[-1] in phases or (not seen[-1] and any(seen))

        wait_until(arrived, f"the swap is in {phases}", pause=0)
        return seen[-1] in phases

    return reach


def test_killed_in_the_seal_and_in_the_swap(source: Source, target: Target) -> None:
    """Half swapped or not, what stands there when the next agent has told of it is one of the two."""
    hits = []
    for reach in (in_seal, in_swap("back"), in_swap("out", "in"), in_swap("last")):
        with slow_moves(target.guest.place) as target.agent.environment:
            order = Order(target, source)
            hits.append(reach(order))
            order.die()
        order.assert_clear(order.agent.ledger.get(order.id).phase, order.old, order.new)
    assert any(hits)
