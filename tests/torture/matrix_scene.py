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
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore import loaders
from botocore.retries.standard import ExponentialBackoff

from guestagent.catalog import Catalog
from guestagent.errors import GuestagentError
from guestagent.jobs import record
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.perform import perform
from guestagent.jobs.settle import settle_locked
from guestagent.jobs.story import tell
from guestagent.keys import KeyRing, KeySettings, open_keys
from guestagent.model import InstanceId
from guestagent.operations.rotate import rotate
from guestagent.operations.sweep import sweep_own
from guestagent.progress import Cancel, Watch
from guestagent.storage import s3
from tests.fakes.bench import BEFORE, INSTANCE, Bench, Tree, data_in, read_tree, settled, write_tree
from tests.servers.faults.script import Kind, Script, What
from tests.torture import matrix_checker as checker
from tests.torture.matrix_cases import Case, Story
from tests.torture.matrix_stores import Place
from tests.torture.matrix_verdict import CAUSES, Verdict

BACKUPS = (Story.FULL, Story.INCREMENTAL)
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


@dataclass
class Known:
    """A backup of the scene, and what it holds."""

    id: str
    tree: Tree

    @property
    def place(self) -> str:
        """Where its objects lie."""
        return f"{INSTANCE}/{self.id}"


@dataclass
class Played:
    """How a story ended, as far as it told."""

    id: str
    result: dict[str, Any] | None = None
    error: GuestagentError | None = None
    wrong: list[str] = field(default_factory=list)


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
        self.ledger = Ledger(self.bench.state)
        self.chain: list[Known] = []
        for number in range(2):
            self.chain.append(self._taken(f"write {number}"))
        self.golden = place.objects()
        self.host_files = self._host_files()

    def close(self) -> None:
        self.bench.close()

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
        before = self.place.objects()
        lately = [name for name in before if name not in self.golden]
        with self.place.going_wrong(case.script, lately=lately) as play:
            played = self._told(case, victim)
            settled()
        verdict.struck = [str(hit) for hit in play.hits]
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
        return Known(self.bench.backup(self.chain[-1].id if self.chain else None, segment_size=SEGMENT).id, tree)

    def _prepared(self, case: Case) -> Known:
        """What the story is about: the backup that is to be restored, or deleted, or what one is to hold."""
        if case.story in BACKUPS:
            return Known(str(uuid.uuid4()), self.bench.write("a case"))
        if case.story is Story.DELETE:
            return Known(self.bench.backup(segment_size=SEGMENT).id, {})
        if case.story is Story.REPLACE:
            write_tree(self.target, BEFORE)
        return self.chain[0] if case.story is Story.REFUSED else self.chain[-1]

    @property
    def target(self) -> Path:
        """Where restores go."""
        return self.top / "target"

    def _told(self, case: Case, victim: Known) -> Played:
        """Tell the story as a command would: under the lock, in the ledger."""
        if case.story is Story.ROTATE:
            return self._rotated()
        kind, request = self._request(case, victim)
        played = Played(victim.id if case.story in BACKUPS else str(uuid.uuid4()))
        job = record.Job(played.id, kind, request, created=datetime.now(tz=UTC), origin="cli", told=True)
        host = self.bench.host(segment_size=SEGMENT)
        try:
            with host.catalog, only_job(host.state_dir, str(job)):
                settle_locked(self.ledger, host)
                begun = self.ledger.open(job)
                ended = perform(self.ledger, begun, lambda watch: tell(host, begun, watch), cancel=Cancel(), limit=60)
                played.result = dict(ended.result)
        except GuestagentError as error:
            played.error = error
        except Exception as error:  # the judge wants to know of it, and the next case must be played all the same
            played.wrong.append(f"an error that is not ours: {type(error).__name__}: {error}")
        return played

    def _rotated(self) -> Played:
        """A change of keys, which is no job."""
        played = Played("")
        before, self.bench.keys = self.bench.keys, self.keys(changed=True)
        host = self.bench.host(keys=self.bench.keys)
        try:
            with host.catalog:
                found = rotate(host, Watch())
            played.error = next((one.error for one in found if one.error), None)
        except GuestagentError as error:
            played.error = error
        finally:
            self.bench.keys = before
        return played

    def _judged_rotation(self, played: Played, now: dict[str, bytes]) -> list[str]:
        keys = [checker.opened_by(now, one.place, self.key or b"", self.next_key) for one in self.chain]
        if None in keys:
            return ["a backup is lost: neither the old key nor the new one opens it"]
        return ["reported as done, and a backup needs the old key"] if played.error is None and 0 in keys else []

    def _request(self, case: Case, victim: Known) -> tuple[record.Kind, dict[str, Any]]:
        if case.story in BACKUPS:
            parent = self.chain[-1].id if case.story is Story.INCREMENTAL else None
            return record.Kind.BACKUP, {"name": "a case", "description": "", "parent": parent}
        if case.story is Story.VERIFY:
            return record.Kind.VERIFY, {"backup_id": victim.id}
        if case.story in (Story.DELETE, Story.REFUSED):
            return record.Kind.DELETE, {"backup_id": victim.id, "cascade": False}
        wanted = {"source": victim.id, "datadir": str(self.target), "replace": case.story is Story.REPLACE}
        return record.Kind.RESTORE, wanted | {"start": False}

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
        if played.error is not None or played.wrong:
            return []  # a manifest may be there that nobody knew to be stored; a sweep has to tell what it is worth
        chain = checker.chain_of(now, victim.place, self.key)
        links = [one.place for one in self.chain] if case.story is Story.INCREMENTAL else []
        if chain != [*links, victim.place]:
            return [f"its chain is {chain}"]
        by_hand = checker.by_hand(now, chain, self.top / "by-hand", self.key)
        return [] if data_in(by_hand) == victim.tree else ["false COMPLETED: what a restore gives is different"]

    def _judged_delete(self, played: Played, victim: Known, now: dict[str, bytes]) -> list[str]:
        left = [name for name in now if name.startswith(f"{victim.place}/")]
        if played.error is None and not played.wrong:
            return [f"reported as deleted, and {left} are there"] if left else []
        if f"{victim.place}/manifest.json" in left:
            checker.check_whole(now, victim.place, self.key)
        return []

    def _judged_restore(self, case: Case, played: Played, victim: Known) -> list[str]:
        found = checker.tree(self.target) if self.target.exists() else {}
        old = BEFORE if case.story is Story.REPLACE else {}
        if played.error is not None or played.wrong:
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
    patch.setattr(loaders, "create_loader", functools.cache(loaders.create_loader))
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
