"""The same cases on a real MariaDB with its real tool, by the commands as they are typed: some seconds each.

As a program, ``python -m tests.torture.matrix_real SEED FROM TO``, or ``... case LINE``.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.bench import BEFORE, write_tree
from tests.integration.running import in_memory, tools
from tests.servers.faults.gate import FaultGate
from tests.servers.faults.script import Hit, Play, Script
from tests.servers.guest import PASSWORD, PATIENCE, Guest
from tests.servers.mariadb import MariaDB, give_to_server, workplace
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY, moto_s3
from tests.torture import matrix_checker as checker
from tests.torture.matrix_cases import Case, Face, Story, make_case
from tests.torture.matrix_stores import ATTEMPTS, READ_TIMEOUT, STALL, Bucket, Directory
from tests.torture.matrix_verdict import CAUSES, Verdict

STORIES = (Story.FULL, Story.INCREMENTAL, Story.RESTORE, Story.REPLACE, Story.VERIFY)
STREAM = "[stream]\nsegment_size = 1M\nlevel = 1\nno_progress_limit = 60\n"
DATA = """
CREATE DATABASE d; USE d;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO t (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_2000;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;
INSERT INTO my SELECT seq, 'my' FROM seq_1_to_100;
"""
MORE = "USE d; DELETE FROM t WHERE id % 3 = 0; UPDATE my SET v = 'more' WHERE id % 7 = 0;"
NAME = "guest1"


class RealScene:
    """One server with a chain of two backups in a store of its own."""

    def __init__(self, server: MariaDB, place: Path, store: Directory | Bucket, *, sealed: bool) -> None:
        self.top, self.store = place, store
        self.key: bytes | None = None
        settings = STREAM
        if isinstance(store, Bucket):
            settings += (
                f"[s3]\nendpoint_url = {store.gate.url}\nregion_name = us-east-1\naccess_key_id = {ACCESS_KEY}\n"
                f"secret_access_key = {SECRET_KEY}\nmax_attempts = {ATTEMPTS}\nread_timeout = {READ_TIMEOUT}\n"
            )
        if sealed:
            self.key = os.urandom(32)
            (place / "key").write_bytes(base64.b64encode(self.key) + b"\n")
            (place / "key").chmod(0o600)
            settings += f"[encryption]\nkey_file = {place}/key\n"
        self.guest = Guest(NAME, server, place, store.url, settings=settings)
        self.chain = [self._taken(None)]
        server.script(MORE)
        self.content = server.content()
        self.chain.append(self._taken(self.chain[0]))
        self.golden = store.objects()

    def _taken(self, parent: str | None) -> str:
        words = ["--parent", parent] if parent else []
        made: str = self.guest.json("backup", "create", "golden", *words)["id"]
        return made

    @property
    def target(self) -> Path:
        """Where restores go."""
        return self.top / "target"

    # -- playing

    def play(self, case: Case) -> Verdict:
        """Play a case by its command, judge it, and clean up."""
        began = time.monotonic()
        verdict, wanted = Verdict(str(case)), str(uuid.uuid4())
        if case.story is Story.REPLACE:
            write_tree(self.target, BEFORE)
            give_to_server(self.target)
        done, hits = self._typed(case, self._words(case, wanted))
        said = [line for line in done.stderr.splitlines() if line.startswith("guestagent: ")]
        verdict.ended = f"status {done.returncode}" if done.returncode else "completed"
        verdict.told = said[-1] if said else ""
        verdict.struck = hits
        verdict.wrong += self._judged(case, done, verdict.told, wanted)
        verdict.wrong += self._cleaned()
        verdict.seconds = time.monotonic() - began
        return verdict

    def _words(self, case: Case, wanted: str) -> list[str]:
        tip = self.chain[-1]
        return {
            Story.FULL: ["backup", "create", "case", "--id", wanted],
            Story.INCREMENTAL: ["backup", "create", "case", "--id", wanted, "--parent", tip],
            Story.RESTORE: ["restore", tip, "--datadir", str(self.target), "--no-start"],
            Story.REPLACE: ["restore", tip, "--datadir", str(self.target), "--no-start", "--replace"],
            Story.VERIFY: ["backup", "verify", tip],
        }[case.story]

    def _typed(self, case: Case, words: list[str]) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Type the command while the store goes wrong; gives what became of it, and what was struck."""
        if isinstance(self.store, Bucket):
            with self.store.going_wrong(case.script) as play:
                return self.guest.command(*words), _told(play)
        program = ["-m", "tests.servers.faults.disk", str(self.store.root), str(case.script)]
        argv = [sys.executable, *program, *self.guest.argv(*words)[3:]]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=Path(__file__).parents[2]
        )
        struck = done.stderr.rpartition("struck: ")[2].strip()
        return done, [] if struck == "nothing" else struck.split("; ")

    # -- judging

    def _judged(self, case: Case, done: subprocess.CompletedProcess[str], told: str, wanted: str) -> list[str]:
        now = self.store.objects()
        wrong = ["a traceback"] if "Traceback" in done.stderr else []
        wrong += ["a secret was told"] if PASSWORD in done.stderr + done.stdout else []
        if done.returncode and not any(CAUSES[fault.what].search(told) for fault in case.script.faults):
            wrong.append("the cause is not named")
        try:
            if case.story in (Story.FULL, Story.INCREMENTAL):
                wrong += self._judged_backup(case, done.returncode, now, wanted)
            elif case.story is not Story.VERIFY:
                wrong += self._judged_restore(case, done.returncode)
        except checker.Wrong as error:
            wrong.append(str(error))
        unknown = checker.rubbish(now) - checker.marked(self.guest.state)
        wrong += [f"what lies at {sorted(unknown)} is known to no sweep"] if unknown else []
        wrong += [f"processes live on: {found}"] if (found := list(tools(self.guest.place).values())) else []
        return wrong

    def _judged_backup(self, case: Case, status: int, now: dict[str, bytes], wanted: str) -> list[str]:
        job = checker.job(self.guest.state, wanted)
        wrong = [f"the record says {job['state']}"] if (job["state"] == "completed") != (status == 0) else []
        place = f"{NAME}/{wanted}"
        if status:
            return wrong + checker.phantoms(now, self.key)
        chain = checker.chain_of(now, place, self.key)
        return wrong + self._compared(checker.by_hand(now, chain, self.top / "by-hand", self.key))

    def _judged_restore(self, case: Case, status: int) -> list[str]:
        if status == 0:
            return self._compared(self.target)
        found = checker.tree(self.target) if self.target.exists() else {}
        return (
            [] if found == (BEFORE if case.story is Story.REPLACE else {}) else ["the old datadir is not what it was"]
        )

    def _compared(self, datadir: Path) -> list[str]:
        """Whether a server on that directory has what ours has."""
        give_to_server(datadir)
        with MariaDB(datadir=datadir) as restored:
            return [] if restored.content() == self.content else ["a silent difference"]

    def _cleaned(self) -> list[str]:
        """Have the next command sweep; it verifies the chain of the scene, which is whole and alone then."""
        done = self.guest.command("backup", "verify", self.chain[-1])
        wrong = [f"the chain of the scene is damaged: {done.stderr}"] if done.returncode else []
        left = self.store.objects()
        if rubbish := checker.rubbish(left) - checker.given_up(self.guest.state):
            wrong.append(f"a sweep leaves {sorted(rubbish)}")
        self.store.drop(sorted(set(left) - set(self.golden)))
        wrong += [] if self.store.objects() == self.golden else ["objects of others have changed"]
        for name in ("target", "by-hand"):
            shutil.rmtree(self.top / name, ignore_errors=True)
        shutil.rmtree(self.guest.state / "unfinished", ignore_errors=True)
        return wrong


def _told(play: Play) -> list[str]:
    hits: list[Hit] = play.hits
    return list(map(str, hits))


@contextmanager
def real_scene(store: str, *, sealed: bool) -> Iterator[RealScene]:
    """A scene for as long as its cases are played."""
    with in_memory(), ExitStack() as stack:
        place = stack.enter_context(workplace())
        server = stack.enter_context(MariaDB())
        server.script(DATA)
        server.backup_account("backup", PASSWORD)
        found: Directory | Bucket = Directory(place / "store")
        if store == "s3":
            port = urlsplit(stack.enter_context(moto_s3())).port
            assert port
            found = Bucket(stack.enter_context(FaultGate(port, stall=STALL)), place.name)
            found.gate.begin(Script())
        yield RealScene(server, place, found, sealed=sealed)


def run(cases: Iterable[Case], told: Callable[[Verdict], object]) -> list[Verdict]:
    """Play cases, those of one scene together; of stories that are played here."""
    wanted = [case for case in cases if case.story in STORIES and case.face is Face.CLI]
    found = []
    for store, sealed in sorted({(case.store, case.sealed) for case in wanted}):
        with real_scene(store, sealed=sealed) as scene:
            for case in (one for one in wanted if (one.store, one.sealed) == (store, sealed)):
                found.append(scene.play(case))
                told(found[-1])
    return found


def main(*words: str) -> int:
    """Play what the words say; gives 1 if anything was wrong."""
    cases = (
        [Case.parse(line) for line in words[1:]]
        if words[0] == "case"
        else [make_case(words[0], number) for number in range(int(words[1]), int(words[2]))]
    )
    found = run(cases, lambda verdict: print(verdict, f"{verdict.seconds:.1f} s", flush=True))
    return int(any(verdict.wrong for verdict in found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
