"""What is done to a chain, and looked at after each step: backups, restores, deletes, other lives of the server."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from guestagent.errors import Cancelled, GuestagentError, NotFound, Refused, StorageError, ToolError
from guestagent.manifest import Backup
from guestagent.model import BackupId, backup_id
from guestagent.operations.backup import BackupRequest, backup
from guestagent.operations.delete import delete
from guestagent.operations.plan import RestoreRequest
from guestagent.operations.restore import restore
from guestagent.operations.sweep import sweep_own
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from guestagent.storage import Storage
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB
from tests.torture import chains_work as work
from tests.torture.chains_content import content_of, differences, flaws
from tests.torture.chains_held import Held
from tests.torture.chains_model import Life, Model, Node, Refusal
from tests.torture.chains_stage import Flavour, Stage
from tests.torture.soak import Record

NEWER = "10.11.99"
"""A version of the tool that is not older than the one that is installed, of its series."""
AT_THE_END = 3
"""Backups restored at the end, if so many have not been restored before."""
_COPY_PATIENCE = 60

Deeds = list[tuple[str, int]]
Wrapped = Callable[[Storage], Storage]


class Player:
    """One chain as it is played: the model of it, the counts, and a log that a person can follow."""

    def __init__(self, stage: Stage, flavour: Flavour) -> None:
        self.stage = stage
        self.model = Model()
        self.record = Record("chains", 0)
        self.log = [str(flavour)]
        self.wrong = ""
        self.over = False
        """Whether it came to its end: hypothesis gives some up that need too many choices."""
        self.restores = 0
        self.held = Held(stage.server)
        self._proven: set[BackupId] = set()
        self._saved: tuple[Path, Life] | None = None
        stage.begin(flavour)

    # -- words

    def count(self, row: str, column: str) -> None:
        """Count a run, and how it ended."""
        self.record.count(row, "runs", column)
        self.record.faulted = int(self.record.faulted or column in ("failed", "cancelled"))

    def tell(self, words: str) -> None:
        """Note a step, with backups by their numbers."""
        for number, known in enumerate(self.model.all):
            words = words.replace(known, f"#{number}")
        self.log.append(words)

    def node(self, pick: int) -> Node:
        """Any backup."""
        return list(self.model.nodes.values())[pick % len(self.model.nodes)]

    # -- requests

    def work(self, deeds: Deeds, server: MariaDB | None = None) -> None:
        """Change the data."""
        for kind, number in deeds:
            for statement, against in work.do(server or self.stage.server, kind, number):
                self.log.append(f"  {statement}{f'  -- {against}' if against else ''}")

    def asked(
        self,
        parent: str | None,
        *,
        watch: Watch | None = None,
        wrapped: Wrapped | None = None,
        guest: Guest | None = None,
    ) -> Backup:
        """Ask for a backup."""
        request = BackupRequest(id=backup_id(str(uuid.uuid4())), name="torture", parent=parent)
        with self.stage.host(wrapped, guest) as host:
            return backup(host, request, watch or Watch())

    def asked_back(
        self,
        wanted: BackupId,
        *,
        watch: Watch | None = None,
        wrapped: Wrapped | None = None,
        guest: Guest | None = None,
        **options: Any,
    ) -> None:
        """Ask for a restore."""
        with self.stage.host(wrapped, guest) as host:
            restore(host, RestoreRequest(wanted, **options), watch or Watch())

    def deleted(self, wanted: BackupId, *, cascade: bool) -> None:
        """Ask for a delete."""
        with self.stage.host() as host:
            delete(host, wanted, Watch(), cascade=cascade)

    # -- what must be COMPLETED

    def back_up(self, parent: str | None, row: str, *, newer: bool = False, wrapped: Wrapped | None = None) -> Node:
        """A backup of the data that are there."""
        content = content_of(self.stage.server)
        self.tell(f"{row}{f' {parent}' if parent else ''}, to be #{len(self.model.all)}")
        made = self.asked(parent, wrapped=wrapped)
        file, position, *_ = self.stage.server.query("SHOW MASTER STATUS")[0]
        assert made.manifest.binlog is not None
        found = (made.manifest.binlog.file, made.manifest.binlog.position)
        assert found == (file, position), f"the binlog is at {file}:{position}, and the manifest says {found}"
        self.count(row, "completed")
        return self.model.learn(made, content, newer=newer)

    def tool_for(self, node: Node) -> ExitStack:
        """The tool that can restore it."""
        return self.stage.tool_of_version(NEWER) if node.newer else ExitStack()

    def must_equal(self, node: Node, server: MariaDB) -> None:
        """A server holds exactly what was backed up, and every index fits."""
        wrong = differences(node.content, content_of(server)) + flaws(server)
        assert not wrong, f"{node.id} came back otherwise: {wrong}"
        self._proven.add(node.id)

    def restore_in_place(self, node: Node) -> None:
        """Restore it over the present data."""
        self.tell(f"restore in place: {node.id}")
        self.restores += 1
        self.held.release()
        with self.tool_for(node):
            self.asked_back(node.id, replace=True, start=True)
        self.model.restored(node)
        self.must_equal(node, self.stage.server)
        self.count("restore in place", "completed")

    def restore_elsewhere(self, node: Node) -> None:
        """Restore it into an empty directory."""
        self.tell(f"restore elsewhere: {node.id}")
        self.restores += 1
        target = self.stage.place / "elsewhere"
        with self.tool_for(node):
            self.asked_back(node.id, datadir=target)
        with self.stage.beside(target) as server:
            self.must_equal(node, server)
        self.count("restore elsewhere", "completed")

    def go_on_elsewhere(self, node: Node, deeds: Deeds) -> None:
        """Restore it on another instance, which goes on from there."""
        self.tell(f"another instance goes on from {node.id}, to make #{len(self.model.all)}")
        self.restores += 1
        with self.stage.other_guest() as guest, self.tool_for(node):
            self.asked_back(node.id, guest=guest, start=True)
            self.must_equal(node, guest.server)
            self.work(deeds, guest.server)
            content = content_of(guest.server)
            made = self.asked(node.id, guest=guest)
        self.model.learn(made, content, elsewhere=True, newer=node.newer)
        self.count("fork: another instance goes on", "completed")

    def delete(self, node: Node, *, cascade: bool) -> None:
        """Delete it, or be refused because others stand on it."""
        family = [one.id for one in self.model.family(node)]
        if len(family) > 1 and not cascade:
            reason = Refusal(Refused, f"{len(family) - 1} backups stand on {node.id}.*--cascade")
            self.refused("delete of a parent", reason, lambda: self.deleted(node.id, cascade=False))
            return
        self.tell(f"delete {' '.join(family)}")
        self.deleted(node.id, cascade=cascade)
        self.model.forget(family)
        assert self.places() == set(self.model.nodes), "other objects are gone, or not all of them"
        self.count("delete, with all that stand on it" if len(family) > 1 else "delete", "completed")

    # -- what must come to nothing

    def refused(self, what: str, reason: Refusal, act: Callable[[], object]) -> None:
        """The request comes to nothing, for this reason, and costs nothing."""
        column = {Cancelled: "cancelled", ToolError: "failed", StorageError: "failed"}.get(reason.kind, "refused")
        self.tell(f"{column}: {what}")
        with self._costs_nothing():
            try:
                act()
            except GuestagentError as error:
                reason.check(error)
            else:
                raise AssertionError(f"it is COMPLETED, and ought to be {column}: {reason.saying}")
        self.count(f"{column}: {what}", column)

    @contextmanager
    def _costs_nothing(self) -> Iterator[None]:
        """The data, the backups and the disk are afterwards what they were."""
        stage = self.stage
        content, objects = content_of(stage.server), stage.objects
        yield
        assert stage.objects == objects, f"objects: {set(stage.objects) ^ set(objects)}"
        wrong = differences(content, content_of(stage.server)) + stage.left()
        assert not wrong, f"it has cost something: {wrong}"

    # -- other lives

    def wipe(self) -> None:
        """The server is made anew."""
        self.tell("the server is made anew")
        self.held.release()
        self.stage.wipe()
        self.model.life = Life()
        reason = Refusal(NotFound, "no backup of this server to continue.*take a full")
        self.refused("the latest of a server made anew", reason, lambda: self.asked("latest"))

    def save(self) -> None:
        """Copy the disk, as a snapshot does."""
        self.tell("a copy of the disk is made")
        self.held.release()
        self.stage.server.stop()
        copy = self.stage.place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        _copied(self.stage.server.datadir, copy)
        self.stage.server.start()
        self._saved = copy, self.model.life

    def roll_back(self) -> None:
        """Put the disk back to its copy, if there is one."""
        if self._saved is None:
            return
        self.tell("the disk is put back to its copy")
        self.held.release()
        self.stage.server.stop()
        shutil.rmtree(self.stage.server.datadir)
        copy, self.model.life = self._saved
        _copied(copy, self.stage.server.datadir)
        self.stage.server.start()
        self.count("rolled back to a copy of the disk", "completed")

    def restart(self, *options: str) -> None:
        """Restart the server."""
        self.tell("the server is restarted")
        self.held.release()
        self.stage.server.restart(*options)

    # -- the end

    def places(self) -> set[str]:
        """Of which backups objects lie in the store."""
        return {name.split("/")[1] for name in self.stage.objects}

    def finish(self) -> None:
        """Look at everything once more."""
        self.tell("the end")
        with self.stage.host() as host:
            sweep_own(host)
            assert list((host.state_dir / "unfinished").glob("*")) == [], "marks that no sweep takes away"
            listed = [one.id for one in host.catalog.backups()]
            assert sorted(listed) == sorted(self.model.nodes), "the list shows something else"
            for node in self.model.nodes.values():
                if len(self.model.family(node)) == 1:
                    verify(host, node.id, Watch())
                    self.count("verify", "completed")
        assert self.places() == set(self.model.nodes), f"objects that no backup needs: {self.stage.objects}"
        assert self.stage.phantoms() == [], "an independent reader finds backups that are none"
        unproven = [node for node in self.model.nodes.values() if node.id not in self._proven]
        for node in sorted(unproven, key=lambda node: -len(node.chain))[:AT_THE_END]:
            self.restore_elsewhere(node)
        assert self.stage.left() == [], "something is left"
        self.over = True


def _copied(old: Path, new: Path) -> None:
    subprocess.run(["cp", "-a", str(old), str(new)], check=True, timeout=_COPY_PATIENCE)
