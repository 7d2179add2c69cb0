"""The stories of a race: what is backed up and restored, by whom, in which order, and the proof of what came back."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.dataset import DataSet, fingerprint
from benchmarks.measure import Cost
from benchmarks.race_contenders import Contender, Made, Scene
from benchmarks.race_figures import OURS, Run

STORIES = ("full", "inc1", "inc10", "restore", "restore2", "restore7", "slow")
TAKES_PART: Mapping[str, tuple[str, ...]] = {
    "full": ("aws", "rclone", "s5cmd", "trove"),
    "inc1": ("aws",),
    "inc10": ("aws",),
    "restore": ("aws", "rclone", "s5cmd"),
    "restore2": ("aws",),
    "restore7": ("aws",),
    "slow": (),
}
"""Which rivals run in a story; ours always does."""
CHANGES: Mapping[str, float] = {"inc1": 0.01, "inc10": 0.10}
LINKS: Mapping[str, int] = {"restore": 0, "restore2": 2, "restore7": 7, "slow": 7}
"""How many incrementals a restore's chain has."""
BEFORE_LINK = 0.01
"""What changes before each link of a chain."""
BITS = 8
MEGA = 10**6

Act = Callable[[Contender], tuple[Cost, int, int]]
"""What a contender does in a run; gives the cost, and the stored and raw bytes of it."""


@dataclass(frozen=True)
class Link:
    """An emulated link: bytes a second each way, and seconds of a round trip."""

    rate: float
    latency: float

    def __str__(self) -> str:
        return f"{self.rate * BITS / MEGA:.0f} Mbit/s, {self.latency * 1000:.0f} ms"


@dataclass
class Chain:
    """A base and its incrementals, of one contender."""

    links: list[Made] = field(default_factory=list)

    def upto(self, count: int) -> list[Made]:
        """The base and the first incrementals."""
        return self.links[: count + 1]


@dataclass
class Race:
    """Runs stories; ``told`` hears of each run that counts.

    ``warm`` is how many runs of each contender come before those that count.
    """

    scene: Scene
    contenders: Sequence[Contender]
    rounds: int
    told: Callable[[Run], None]
    warm: int = 1
    links: Sequence[Link] = ()
    slow_rounds: int = 1
    proven: set[tuple[str, str]] = field(default_factory=set)
    """Stories and contenders whose restored data was compared with the source's."""
    _chains: dict[str, Chain] = field(default_factory=dict)
    _prints: dict[int, dict[str, str]] = field(default_factory=dict)
    _changes: int = 0

    def run(self, wanted: Sequence[str]) -> None:
        """Run the stories that are wanted, in the order of STORIES."""
        restores = [story for story in STORIES if story in wanted and story in LINKS]
        self.scene.data.start()
        if "full" in wanted:
            self._rounds("full", self._backup(dict.fromkeys(self._names())))
        for story in CHANGES:
            if story in wanted:
                self._incrementals(story)
        if restores:
            self._build(restores)
        self.scene.data.stop()
        for story in restores:
            self._slow() if story == "slow" else self._restores(story)

    # -- backups

    def _incrementals(self, story: str) -> None:
        """The same state again and again, from the same base: ours from its own, the rivals from its LSN."""
        own = {one.name: one.backup()[1] for one in self.contenders if _is_ours(one.name)}
        bases = {name: own.get(name, own[OURS]) for name in self._names()}
        self._change(CHANGES[story])
        self._rounds(story, self._backup(bases))
        for base in own.values():
            self.scene.store.remove(base.prefix)

    def _backup(self, bases: Mapping[str, Made | None]) -> Act:
        def act(contender: Contender) -> tuple[Cost, int, int]:
            cost, made = contender.backup(bases[contender.name])
            self.scene.store.remove(made.prefix)
            return cost, made.stored, made.raw

        return act

    def _change(self, share: float) -> None:
        self._changes += 1
        self.scene.change(share, self._changes)

    # -- restores

    def _build(self, stories: Sequence[str]) -> None:
        """Make the chains of all who restore; rivals that only fetch otherwise share the first rival's objects."""
        ends = {LINKS[story] for story in stories}
        makers = [one for one in self._of(stories) if _is_ours(one.name)]
        makers += [one for one in self._of(stories) if not _is_ours(one.name)][:1]
        chains = {maker.name: Chain() for maker in makers}
        for number in range(max(ends) + 1):
            if number:
                self._change(BEFORE_LINK)
            for maker in makers:
                before = chains[maker.name].links
                before.append(maker.backup(before[-1] if before else None)[1])
            if number in ends:
                with self.scene.data.session() as session:
                    self._prints[number] = fingerprint(session)
        shared = chains[makers[-1].name]
        self._chains = {name: chains.get(name, shared) for name in self._names()}

    def _restores(self, story: str) -> None:
        self._rounds(story, partial(self._restored, LINKS[story]), proof=LINKS[story])

    def _slow(self) -> None:
        """The longest chain over each link: what does the agent add to the time that the bytes need?"""
        count = LINKS["slow"]
        try:
            for link in self.links:
                self.scene.store.serve(rate=link.rate, latency=link.latency)
                self._rounds(f"slow, {link}", partial(self._restored, count), link=link)
        finally:
            self.scene.store.serve()

    def _restored(self, count: int, contender: Contender) -> tuple[Cost, int, int]:
        chain = self._chains[contender.name].upto(count)
        cost = contender.restore(chain)
        return cost, sum(made.stored for made in chain), sum(made.raw for made in chain)

    def _prove(self, story: str, contender: str, expected: Mapping[str, str]) -> None:
        """Start a server on what was restored, and compare it with what was backed up."""
        with DataSet(self.scene.target.parent) as copy, copy.session() as session:
            found = fingerprint(session)
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            raise RuntimeError(f"{contender} restored other data in {story}: {', '.join(wrong[:5])}")
        self.proven.add((story, contender))

    # -- rounds

    def _rounds(self, story: str, act: Act, *, proof: int | None = None, link: Link | None = None) -> None:
        """Every contender once a round, in its own order; ``proof`` is the link whose data a restore must give."""
        part = self._of([story.partition(",")[0]])
        rounds, warm = (self.rounds, self.warm) if link is None else (self.slow_rounds, 0)
        for number in range(1 - warm, rounds + 1):
            for contender in shuffled(part, number):
                run = self._one(story, contender, number, act)
                if proof is not None and (story, contender.name) not in self.proven:
                    self._prove(story, contender.name, self._prints[proof])
                if number > 0:
                    self.told(run if link is None else _over(run, link))
        self._clean()

    def _one(self, story: str, contender: Contender, number: int, act: Act) -> Run:
        self._clean()
        os.sync()
        used = self.scene.store.sink.cpu_seconds()
        cost, stored, raw = act(contender)
        spent = self.scene.store.sink.cpu_seconds() - used
        began = time.perf_counter()
        os.sync()
        return Run(
            story=story,
            contender=contender.name,
            round=number,
            wall=cost.wall,
            cpu=cost.cpu,
            tree_rss=cost.tree_rss,
            agent_rss=cost.agent_rss,
            stored=stored,
            raw=raw,
            sync=time.perf_counter() - began,
            sink_cpu=spent,
        )

    def _clean(self) -> None:
        """Have no restored data about."""
        shutil.rmtree(self.scene.target.parent, ignore_errors=True)
        self.scene.target.parent.mkdir(parents=True)

    def _names(self) -> list[str]:
        return [one.name for one in self.contenders]

    def _of(self, stories: Sequence[str]) -> list[Contender]:
        """Those who take part in any of the stories."""
        known = {name for story in stories for name in TAKES_PART[story]}
        return [one for one in self.contenders if _is_ours(one.name) or one.name in known]


def shuffled(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of a round: chance's, the same in every race, so that nobody always runs behind the same one."""
    return random.Random(number).sample(contenders, len(contenders))


def _is_ours(name: str) -> bool:
    return name.startswith(OURS)


def _over(run: Run, link: Link) -> Run:
    return Run(**(vars(run) | {"link": run.stored / link.rate}))
