"""One host on which the cases of the matrix are played, thousands of them: the fake tool, a fake server, a real store.

All cases of a scene share a chain of two backups; each sets up the rest, plays its story while the store goes wrong,
is judged, and leaves the scene as it found it.  Pauses between retries are shortened.
"""

from __future__ import annotations

import base64
import functools
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore import loaders, session
from botocore.retries.standard import ExponentialBackoff

from guestagent.catalog import Catalog
from guestagent.keys import KeyRing, KeySettings, open_keys
from guestagent.model import InstanceId
from guestagent.operations.host import Host
from guestagent.operations.sweep import sweep_own
from guestagent.storage import s3
from tests.fakes.bench import BEFORE, Bench, Tree, data_in, read_tree, settled, write_tree
from tests.servers.faults.script import Kind, Script, What
from tests.torture import matrix_checker as checker
from tests.torture.matrix_agent import Agent
from tests.torture.matrix_cases import BACKUPS, Case, Face, Story
from tests.torture.matrix_faces import LIMIT, Asked, Command, Known, Played
from tests.torture.matrix_stores import Place
from tests.torture.matrix_verdict import CAUSES, Verdict

SEGMENT = 6_000
"""Bytes of a segment before compression: some eight of them."""
KEPT = "#sql-guestagent"
"""What a restore makes beside the data."""
INCARNATION = ".guestagent-incarnation"


class StoreBench(Bench):
    """A bench whose store is anywhere."""

    place: Place

    def catalog(self, *, instance: InstanceId | None = None) -> Catalog:
        return Catalog(self.place.url, instance=instance or self.instance, open_storage=self.place.open, keys=self.keys)


class Scene:
    """A host, and a store of its own."""

    def __init__(self, top: Path, place: Place, *, sealed: bool, patch: pytest.MonkeyPatch) -> None:
        _hurry(patch)
        self.top, self.place = top, place
        self.bench = StoreBench(top, patch)
        self.bench.place = place
        self.key: bytes | None = None
        self.next_key = b""
        if sealed:
            self.key, self.next_key = _key(top / "key"), _key(top / "next-key")
            self.bench.keys = self.keys()
        self.command = Command(self.bench.state, self._host)
        self._agent: Agent | None = None
        self._stack = ExitStack()
        self.chain: list[Known] = []
        for number in range(2):
            self.chain.append(self._taken(f"write {number}"))
        self.golden = place.objects()
        self.host_files = self._host_files()

    def close(self) -> None:
        with closing(self.bench):
            self._stack.close()

    def keys(self, *, changed: bool = False) -> KeyRing:
        """The keys that are configured, once before their change and once after it."""
        old, new = self.top / "key", self.top / "next-key"
        return open_keys(KeySettings(key_file=new, old_key_files=(old,)) if changed else KeySettings(key_file=old))

    # -- playing

    def play(self, case: Case) -> Verdict:
        """Play a case, judge it, and clean up."""
        began = time.monotonic()
        verdict = Verdict(str(case))
        victim = self._prepared(case)
        if case.face is Face.RPC:
            self.agent.clear()
        before = self.place.objects()
        lately = [name for name in before if name not in self.golden]
        with self.place.going_wrong(case.script, lately=lately) as play:
            played = self._told(case, victim)
            settled()
        verdict.struck = [str(hit) for hit in play.hits]
        verdict.requests = {kind.value: made for kind, made in play.seen.items()}
        verdict.ended = played.error.code if played.error else "not explained" if played.wrong else "completed"
        verdict.told = str(played.error or "")
        verdict.wrong += played.wrong + self._judged(case, played, victim, before)
        verdict.unsure = case.story in BACKUPS and bool(
            played.error and f"{victim.place}/manifest.json" in self.place.objects()
        )
        verdict.wrong += _unnamed(case, played, [hit.fault.what for hit in play.hits])
        denied = {hit.kind for hit in play.hits if hit.fault.what is What.DENIED}
        if case.story is Story.ROTATE:
            self.place.put({name: data for name, data in self.golden.items() if name.endswith("/key.json")})
        verdict.wrong += self._cleaned(given_up=bool(denied & {Kind.DELETE, Kind.LIST, Kind.GET}))
        verdict.seconds = time.monotonic() - began
        return verdict

    def _taken(self, words: str) -> Known:
        """A backup taken on a good day, on the newest of the chain."""
        tree = self.bench.write(words)
        return Known.of(self.bench.backup(self.chain[-1].id if self.chain else None, segment_size=SEGMENT), tree)

    def _prepared(self, case: Case) -> Known:
        """What the story is about: the backup that is to be restored, or deleted, or what one is to hold."""
        if case.story in BACKUPS:
            return Known(str(uuid.uuid4()), self.bench.write("a case"))
        if case.story is Story.DELETE:
            return Known.of(self.bench.backup(segment_size=SEGMENT), {})
        if case.story is Story.REPLACE:
            write_tree(self.target, BEFORE)
        return self.chain[0] if case.story is Story.REFUSED else self.chain[-1]

    @property
    def target(self) -> Path:
        """Where restores go."""
        return self.top / "target"

    def _told(self, case: Case, victim: Known) -> Played:
        """Have the story told by the face of the case."""
        if case.story is Story.ROTATE:
            return self._rotated()
        parent = self.chain[-1] if case.story is Story.INCREMENTAL else None
        job = victim.id if case.story in BACKUPS else str(uuid.uuid4())
        asked = Asked(case.story, job, victim, self.target, parent)
        return self.agent.tell(asked) if case.face is Face.RPC else self.command.tell(asked)

    def _rotated(self) -> Played:
        before, self.bench.keys = self.bench.keys, self.keys(changed=True)
        try:
            return self.command.rotate()
        finally:
            self.bench.keys = before

    @property
    def agent(self) -> Agent:
        """The agent of this host, at work from the first case on that asks it for something."""
        if self._agent is None:
            self._agent = Agent(self.top, self.bench.state, self._host, self.bench.server, self._stack)
        return self._agent

    def _host(self, **changes: Any) -> Host:
        usual = {"segment_size": SEGMENT, "no_progress_limit": LIMIT, "keys": self.bench.keys or KeyRing()}
        return self.bench.host(**(usual | changes))

    def _judged_rotation(self, played: Played, now: dict[str, bytes]) -> list[str]:
        keys = [checker.opened_by(now, one.place, self.key or b"", self.next_key) for one in self.chain]
        if None in keys:
            return ["a backup is lost: neither the old key nor the new one opens it"]
        return ["reported as done, and a backup needs the old key"] if played.error is None and 0 in keys else []

    # -- judging

    def _judged(self, case: Case, played: Played, victim: Known, before: dict[str, bytes]) -> list[str]:
        """What is not as it was promised."""
        wrong = []
        now = self.place.objects()
        if case.story is Story.ROTATE:
            return self._judged_rotation(played, now)
        try:
            job = checker.job(self.bench.state, played.id)
            if (job["state"] == "completed") != (played.result is not None):
                wrong.append(f"the record says {job['state']}")
            if case.story in BACKUPS:
                wrong += self._judged_backup(case, played, victim, now)
                if case.face is Face.RPC:
                    location = f"{self.place.url}/{victim.place}"
                    checker.check_row(self.agent.row(played.id), job, now, victim.place, location)
            elif case.story is Story.DELETE:
                wrong += self._judged_delete(played, victim, now)
            elif case.story in (Story.RESTORE, Story.REPLACE):
                wrong += self._judged_restore(case, played, victim)
            if case.story is Story.REFUSED and played.error is None:
                wrong.append("a parent was deleted, and its child can no more be restored")
        except checker.Wrong as error:
            wrong.append(str(error))
        mine = f"{victim.place}/" if case.story in (*BACKUPS, Story.DELETE) else "nobody/"
        others = {name: data for name, data in before.items() if not name.startswith(mine)}
        if {name: data for name, data in now.items() if not name.startswith(mine)} != others:
            wrong.append("objects of others have changed")
        unknown = checker.rubbish(now) - checker.marked(self.bench.state)
        if unknown:
            wrong.append(f"what lies at {sorted(unknown)} is known to no sweep")
        return wrong

    def _judged_backup(self, case: Case, played: Played, victim: Known, now: dict[str, bytes]) -> list[str]:
        if not played.completed:
            return []  # a manifest may be there that nobody knew to be stored; a sweep has to tell what it is worth
        chain = checker.chain_of(now, victim.place, self.key)
        links = [one.place for one in self.chain] if case.story is Story.INCREMENTAL else []
        if chain != [*links, victim.place]:
            return [f"its chain is {chain}"]
        by_hand = checker.by_hand(now, chain, self.top / "by-hand", self.key)
        return [] if data_in(by_hand) == victim.tree else ["false COMPLETED: what a restore gives is different"]

    def _judged_delete(self, played: Played, victim: Known, now: dict[str, bytes]) -> list[str]:
        left = [name for name in now if name.startswith(f"{victim.place}/")]
        if played.completed:
            return [f"reported as deleted, and {left} are there"] if left else []
        if f"{victim.place}/manifest.json" in left:
            checker.check_whole(now, victim.place, self.key)
        return []

    def _judged_restore(self, case: Case, played: Played, victim: Known) -> list[str]:
        found = checker.tree(self.target) if self.target.exists() else {}
        old = BEFORE if case.story is Story.REPLACE else {}
        if not played.completed:
            return [] if found == old else ["the old datadir is not what it was"]
        if data_in(self.target) != victim.tree:
            return ["a silent difference: what was restored is not what was backed up"]
        kept = played.result["old_data"] if played.result else None
        if old and (not kept or checker.tree(Path(kept)) != old):
            return ["the old datadir is lost"]
        return []

    def _host_files(self) -> Tree:
        """The server's own datadir, of which only the incarnation may learn."""
        return {name: data for name, data in read_tree(self.bench.datadir).items() if name != INCARNATION}

    # -- cleaning up

    def _cleaned(self, *, given_up: bool) -> list[str]:
        """Sweep as the next job would, and say what is left after that.

        What the store has told us not to delete is nobody's to sweep any more: its mark says so.
        """
        wrong = []
        if self._host_files() != self.host_files:
            wrong.append("the server's datadir has changed")
        if any((self.bench.state / "scratch").glob("*")):
            wrong.append("scratch files stayed")
        try:
            self.bench.check_no_child()
        except AssertionError:
            wrong.append("a tool is still alive")
        with (host := self.bench.host()).catalog:
            sweep_own(host)
        left = self.place.objects()
        aside = checker.given_up(self.bench.state) if given_up else set()
        if rubbish := checker.rubbish(left) - aside:
            wrong.append(f"a sweep leaves {sorted(rubbish)}")
        if marked := checker.marked(self.bench.state) - aside:
            wrong.append(f"a sweep on a good day leaves its marks: {sorted(marked)}")
        wrong += [f"a sweep leaves a backup that is none: {found}" for found in checker.phantoms(left, self.key)]
        self.place.drop(sorted(set(left) - set(self.golden)))
        if self.place.objects() != self.golden:
            wrong.append("the chain of the scene is damaged")
            self.place.put(self.golden)
        for name in ("target", "by-hand"):
            shutil.rmtree(self.top / name, ignore_errors=True)
        shutil.rmtree(self.bench.state / "unfinished", ignore_errors=True)
        self.bench.log.unlink(missing_ok=True)
        return wrong


def _key(path: Path) -> bytes:
    """A new key, written to a file as an operator would."""
    made = os.urandom(32)
    path.write_bytes(base64.b64encode(made) + b"\n")
    path.chmod(0o600)
    return made


def _unnamed(case: Case, played: Played, struck: list[What]) -> list[str]:
    """Whether an error names none of the causes that it can have had."""
    if played.error is None or (case.story is Story.REFUSED and played.error.code == "refused"):
        return []
    told = str(played.error)
    if any(CAUSES[what].search(told) for what in struck) and told.isprintable():
        return []
    return [f"the cause is not named: {told}"]


def _hurry(patch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses before retries, and have boto3 read its descriptions of services but once."""
    patch.setattr(session, "create_loader", functools.cache(loaders.create_loader))
    patch.setitem(vars(ExponentialBackoff)["_DEFAULT_BACKOFF_CONFIG"], "throttling_base_scale", 0.01)
    patch.setattr(s3, "_FIRST_PAUSE", 0.005)


@contextmanager
def scene(top: Path, place: Place, *, sealed: bool) -> Iterator[Scene]:
    """A scene for as long as its cases are played."""
    with pytest.MonkeyPatch.context() as patch:
        top.mkdir(parents=True, exist_ok=True)
        with place.going_wrong(Script()):
            made = Scene(top, place, sealed=sealed, patch=patch)
        try:
            yield made
        finally:
            made.close()
