"""Two guests on which the cases are played: one that is backed up, and one that its backups are restored over.

Each case asks for a job by one of the doors, strikes in its midst, puts the world right again, is judged, and leaves
the scene as it found it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.integration.running import in_memory
from tests.servers.agent import Agent, local_url, serving
from tests.servers.conductor import Conductor, Tables
from tests.servers.faults.gate import FaultGate
from tests.servers.guest import PASSWORD, Guest
from tests.servers.mariadb import MariaDB, give_to_server, workplace
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY, moto_s3
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.trove import Trove
from tests.torture import matrix_checker as checker
from tests.torture import process_judge as judge
from tests.torture.matrix_real import DATA, MORE
from tests.torture.matrix_stores import Bucket, Directory
from tests.torture.process_attempts import Attempt, ByAgent, ByCommand, aim, wait
from tests.torture.process_blows import Bench, hold, small_disk
from tests.torture.process_cases import FLOODS, Case, Face, Story, Victim
from tests.torture.process_judge import Verdict

SETTINGS = "[stream]\nsegment_size = 1M\nlevel = 1\nno_progress_limit = {limit}\n[jobs]\nhistory = 100000\n"
LIMIT = 8
CONDUCTOR = "[conductor]\nenabled = true\nheartbeat_interval = 1\n"
SOURCE, TARGET = "guest1", "guest2"
_SIZES = {"store": "48m", "target": "224m", "state": "8m"}
_TOLD = 90.0
"""Seconds for the conductor's rows to say how a job ended, and for heartbeats to be heard again."""
_REFUSED = 3
_TROVES = "not-to-be-logged"

Content = dict[str, int | str]


class Talkative(Guest):
    """A guest whose processes log whatever there is to log."""

    def argv(self, *words: str) -> list[str]:
        return super().argv("-v", *words)


class Scene:
    """Two servers, a chain of two backups, and agents as soon as they are asked for something."""

    def __init__(self, bench: Bench, guests: tuple[Guest, Guest], store: Directory | Bucket, key: bytes | None) -> None:
        self.bench, self.store, self.key = bench, store, key
        self.source, self.target = guests
        self.chain: list[str] = []
        self.contents: list[Content] = []
        for script in (DATA, MORE):
            self.source.server.script(script)
            self.chain.append(self._golden(self.source))
            self.contents.append(self.source.server.content())
        self.golden = store.objects()
        self.target.command("restore", self.chain[0], "--start")
        self.secrets = {"the password": PASSWORD, "the store's secret": SECRET_KEY, "Trove's token": _TROVES}
        if key is not None:
            self.secrets["the key"] = base64.b64encode(key).decode()
        self.number = 0
        self.stack = ExitStack()
        self._conductor: Conductor | None = None
        self._tables = Tables()
        self._agents: dict[str, Agent] = {}
        self._face = Face.COMMAND

    def _golden(self, guest: Guest) -> str:
        words = ["--parent", self.chain[-1]] if self.chain else []
        made: str = guest.json("backup", "create", "golden", *words)["id"]
        return made

    # -- playing

    def play(self, case: Case) -> Verdict:
        """Play a case and judge it; where nothing is wrong, the next one may follow."""
        began, verdict = time.monotonic(), Verdict(case)
        self._turn_to(case.face)
        self.number += 1
        server = self.bench.servers[case.story]
        server.query("INSERT INTO d.my VALUES (%s, 'a case')", 1000 + self.number)
        before = server.content()
        with self.bench.prepared(case.fault) as environment:
            attempt = self._asked(case, environment)
            status = self._struck(case, attempt, verdict)
        self._judge(case, attempt, verdict, status=status, before=before)
        verdict.seconds = time.monotonic() - began
        return verdict

    def _turn_to(self, face: Face) -> None:
        """Have those agents running, and that conductor, which the face needs."""
        if face is self._face:
            return
        self._leave()
        if face is not Face.COMMAND:
            url = local_url(self.bench.place)
            if face is Face.RABBIT:
                self.bench.broker = broker = self.stack.enter_context(RabbitMQ())
                url = broker.url(broker.vhost())
            conductor = Conductor(url)
            conductor.tables = self._tables
            self._conductor = self.stack.enter_context(conductor)
            for guest in (self.source, self.target):
                guest.defaults = serving(url)
                guest.__post_init__()  # writes its configuration
                agent = Agent(guest, url, environment=self.bench.environment())
                self._agents[guest.name] = self.stack.enter_context(agent)
        self._face = face

    def _leave(self) -> None:
        for agent in self._agents.values():
            agent.terminate()
        self._agents.clear()
        self.stack.close()
        self._conductor = self.bench.broker = None

    def close(self) -> None:
        """End what runs."""
        self._leave()

    def _asked(self, case: Case, environment: dict[str, str]) -> Attempt:
        if case.face is Face.COMMAND:
            guest = self.target if case.story is Story.REPLACE else self.source
            return ByCommand(guest, *self._words(case), environment=environment)
        agent = self._agents[TARGET if case.story is Story.REPLACE else SOURCE]
        if "PATH" in environment:
            agent.terminate()
            agent.environment = environment
            agent.start()
            agent.environment = self.bench.environment()
        return ByAgent(agent, self._sent(case, agent))

    def _words(self, case: Case) -> list[str]:
        wanted = str(uuid.uuid4())
        return {
            Story.FULL: ["backup", "create", "case", "--id", wanted],
            Story.INCREMENTAL: ["backup", "create", "case", "--id", wanted, "--parent", "latest"],
            Story.REPLACE: ["restore", self._wanted(), "--replace", "--start"],
        }[case.story]

    def _wanted(self) -> str:
        """The backup that is restored: each in its turn, with the content that has the same place."""
        return self.chain[self.number % len(self.chain)]

    def _sent(self, case: Case, agent: Agent) -> str:
        assert self._conductor is not None
        wanted = str(uuid.uuid4())
        if case.story is Story.REPLACE:
            with agent.client() as client:
                client.restore(self._wanted(), id=wanted, replace=True, start=True)
            return wanted
        parent = self._row(self.chain[-1]) if case.story is Story.INCREMENTAL else None
        with Trove(agent.url, self._conductor) as trove:
            return trove.create_backup(SOURCE, "case", parent=parent)

    def _row(self, wanted: str) -> dict[str, Any]:
        body = self.golden[f"{SOURCE}/{wanted}/manifest.json"]
        return {"location": f"{self.store.url}/{SOURCE}/{wanted}", "checksum": hashlib.sha256(body).hexdigest()}

    def _struck(self, case: Case, attempt: Attempt, verdict: Verdict) -> int | None:
        """Strike, and put the world right again when it is time; gives the exit status of what was typed."""
        flood = case.fault.what in FLOODS
        aimed = not flood and aim(attempt, case.fault.phase, case.fault.seconds)
        relief = self.bench.strike(case, attempt) if aimed else None
        if relief is not None:
            wait(attempt.over, hold(case))
            relief()
        status = attempt.finish()
        verdict.struck = self.bench.flooded() if flood else relief is not None
        if isinstance(attempt, ByAgent) and case.fault.what == "term" and attempt.status:
            verdict.wrong.append(f"the agent ended with {attempt.status}")
        ours = case.fault.victim is Victim.RUNNER and case.fault.what in ("kill", "term")
        return None if ours and status is not None and (status < 0 or case.fault.what == "kill") else status

    # -- judging

    def _judge(self, case: Case, attempt: Attempt, verdict: Verdict, *, status: int | None, before: Content) -> None:
        texts = [attempt.command.err, attempt.command.out] if isinstance(attempt, ByCommand) else []
        now = self.store.objects()
        unknown = checker.rubbish(now) - checker.marked(self.source.state)
        verdict.wrong += [f"what lies at {sorted(unknown)} is known to no sweep"] if unknown else []
        verdict.wrong += self._told(attempt, verdict)
        texts.append(self._followed(attempt.guest, verdict))
        try:
            record = self._record(attempt)
            verdict.ended, verdict.told = record["state"], judge.words_of(record)
            verdict.wrong += judge.end_of(case, record, struck=verdict.struck) + judge.agrees(status, record)
            verdict.wrong += self._judged(case, attempt, record, before)
        except checker.Wrong as error:
            verdict.wrong.append(str(error))
        logs = [agent.log for agent in self._agents.values()]
        verdict.wrong += judge.secrets([*texts, *logs], self.secrets) + judge.tracebacks(texts, logs)
        verdict.wrong += self._swept()
        if not verdict.wrong:
            self._clean()

    def _record(self, attempt: Attempt) -> dict[str, Any]:
        if not attempt.id:
            return {"state": "failed", "failure": None, "started": None, "finished": None}
        return checker.job(attempt.guest.state, attempt.id)

    def _told(self, attempt: Attempt, verdict: Verdict) -> list[str]:
        """Whether the conductor hears of the end, and still of the agent: of one whose stamps go back it would not.

        It may drop single messages all the same, since it handles several at once.
        """
        if self._conductor is None:
            return []
        conductor, name = self._conductor, attempt.guest.name
        beats = conductor.instance(name).get("beats", 0)
        wrong = []
        if not wait(lambda: conductor.backup(attempt.id).get("state") not in ("NEW", "BUILDING"), _TOLD):
            wrong.append(f"the conductor is not told: {conductor.backup(attempt.id)}")
        if not wait(lambda: conductor.instance(name).get("beats", 0) > beats, _TOLD):
            wrong.append("the conductor hears no heartbeat any more")
        return wrong + ([f"unknown backups: {conductor.unhandled}"] if conductor.unhandled else [])

    def _followed(self, guest: Guest, verdict: Verdict) -> str:
        """What the next command says, which settles and sweeps, and is then refused: another backup stands on that."""
        done = guest.command("backup", "delete", self.chain[0])
        if done.returncode != _REFUSED:
            verdict.wrong.append(f"the next command ends with {done.returncode}: {done.stderr[-500:]}")
        verdict.wrong += judge.host(guest.state)
        if left := judge.tools(self.bench.place):
            verdict.wrong.append(f"processes live on: {left}")
        return done.stderr

    def _judged(self, case: Case, attempt: Attempt, record: dict[str, Any], before: Content) -> list[str]:
        if case.story is Story.REPLACE:
            return judge.times_of(record, None) + self._judged_restore(case, record, before)
        objects, place, manifest, checksum = self.store.objects(), f"{SOURCE}/{attempt.id}", None, None
        wrong = checker.phantoms(objects, self.key)
        if record["state"] == "completed":
            manifest = judge.backup(objects, place, self.key)
            checksum = hashlib.sha256(objects[f"{place}/manifest.json"]).hexdigest()
            wrong += self._compared(objects, place, before)
            parent = self.chain[-1] if case.story is Story.INCREMENTAL else None
            found = manifest["parent"]["id"] if manifest["parent"] else None
            wrong += [] if found == parent else [f"its parent is {found}, not {parent}"]
        elif f"{place}/manifest.json" in objects:
            wrong.append(f"it is {record['state']}, and its manifest is there")
        row = self._conductor.backup(attempt.id) if self._conductor else {}
        return wrong + judge.times_of(record, manifest) + judge.row(case, row, record, checksum)

    def _compared(self, objects: dict[str, bytes], place: str, before: Content) -> list[str]:
        """Whether a server on what a restore by hand gives has what was there."""
        chain = checker.chain_of(objects, place, self.key)
        base = checker.by_hand(objects, chain, self.bench.place / "by-hand", self.key)
        give_to_server(base)
        with MariaDB(datadir=base) as restored:
            return [] if restored.content() == before else ["a silent difference"]

    def _judged_restore(self, case: Case, record: dict[str, Any], before: Content) -> list[str]:
        server = self.target.server
        wrong = judge.datadir(server.datadir, completed=record["state"] == "completed")
        kept = any(server.datadir.glob(f"{judge.OURS}/.old-*"))
        if not server.running:
            try:
                server.start()
            except RuntimeError as error:
                return [*wrong, f"no server starts on what is left: {error}"]
        found, new = server.content(), self.contents[self.number % len(self.chain)]
        return wrong + judge.fits(case, old=found == before, new=found == new, state=record["state"], kept=kept)

    # -- afterwards

    def _swept(self) -> list[str]:
        """Whether the sweep that there was leaves nothing, and has harmed nobody."""
        objects = self.store.objects()
        left = checker.rubbish(objects) - checker.given_up(self.source.state)
        wrong = [f"a sweep leaves {sorted(left)}"] if left else []
        harmed = sorted(name for name, body in self.golden.items() if objects.get(name) != body)
        return wrong + ([f"objects of others have changed: {harmed}"] if harmed else [])

    def _clean(self) -> None:
        """Leave the scene as it was."""
        self.store.drop(sorted(set(self.store.objects()) - set(self.golden)))
        if isinstance(self.store, Directory):
            for half in self.store.root.rglob(".guestagent-put-*"):
                half.unlink()
        for path in [self.bench.place / "by-hand", *self.target.server.datadir.glob(f"{judge.OURS}/.old-*")]:
            shutil.rmtree(path, ignore_errors=True)
        for agent in self._agents.values():
            os.truncate(agent.guest.place / f"{agent.guest.name}-agent.log", 0)
        for server in self.bench.servers.values():
            if not server.running:
                server.start()


@contextmanager
def scene(store: str, *, sealed: bool, limit: int = LIMIT) -> Iterator[Scene]:
    """A scene for as long as its cases are played; jobs are given up after ``limit`` seconds without a byte."""
    with in_memory(), ExitStack() as stack:
        place = stack.enter_context(workplace())
        sizes = {"store": "store", TARGET: "target", f"{SOURCE}-state": "state", f"{TARGET}-state": "state"}
        for name, size in sizes.items():
            stack.enter_context(small_disk(place / name, _SIZES[size]))
        key = os.urandom(32) if sealed else None
        found, settings = _store(stack, store, place)
        settings += SETTINGS.format(limit=limit) + CONDUCTOR + (_key(place, key) if key else "")
        servers = stack.enter_context(MariaDB()), MariaDB(datadir=place / TARGET / "data", running=False)
        stack.enter_context(servers[1])
        servers[0].backup_account("backup", PASSWORD)
        guests = [
            Talkative(name, server, place, found.url, settings=settings)
            for name, server in zip((SOURCE, TARGET), servers, strict=True)
        ]
        disks = {Victim.STORE: place / "store", Victim.DATA: place / TARGET}
        by_story = {Story.FULL: servers[0], Story.INCREMENTAL: servers[0], Story.REPLACE: servers[1]}
        made = Scene(Bench(place, by_story, disks), (guests[0], guests[1]), found, key)
        stack.callback(made.close)
        yield made


def _store(stack: ExitStack, kind: str, place: Path) -> tuple[Directory | Bucket, str]:
    if kind == "file":
        return Directory(place / "store"), ""
    endpoint = stack.enter_context(moto_s3())
    port = urlsplit(endpoint).port
    assert port
    bucket = Bucket(stack.enter_context(FaultGate(port)), place.name)
    return bucket, (
        f"[s3]\nendpoint_url = {endpoint}\nregion_name = us-east-1\naccess_key_id = {ACCESS_KEY}\n"
        f"secret_access_key = {SECRET_KEY}\n"
    )


def _key(place: Path, key: bytes) -> str:
    path = place / "key"
    path.write_bytes(base64.b64encode(key) + b"\n")
    path.chmod(0o600)
    return f"[encryption]\nkey_file = {path}\n"
