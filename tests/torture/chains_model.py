"""What is known of a chain's backups, and so what must come of each request."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from guestagent.errors import GuestagentError, NotFound, Refused
from guestagent.manifest import Backup
from guestagent.model import BackupId
from tests.torture.chains_content import Content


@dataclass(frozen=True)
class Node:
    """A backup that is COMPLETED: what a restore of it must give, and the ids of its chain, base first."""

    backup: Backup
    content: Content
    chain: tuple[BackupId, ...]
    newer: bool
    """Whether it, or a link below it, was made by a tool that says it is newer than the one that is installed."""

    @property
    def id(self) -> BackupId:
        """The backup's id."""
        return self.backup.id


@dataclass(frozen=True)
class Refusal:
    """The right reason for which a request comes to nothing."""

    kind: type[GuestagentError]
    saying: str

    def check(self, error: GuestagentError) -> None:
        """Raise AssertionError unless this is the reason."""
        assert type(error) is self.kind, f"{type(error).__name__}, not {self.kind.__name__}: {error}"
        assert re.search(self.saying, str(error)), f"another reason than {self.saying!r}: {error}"


@dataclass(frozen=True)
class Life:
    """What the present data are: through which backups they have passed, oldest first; None: they cannot know."""

    history: tuple[BackupId, ...] | None = None

    def after(self, backup: BackupId) -> Life:
        """The same data, after a backup of them."""
        others = tuple(one for one in self.history or () if one != backup)
        return replace(self, history=(*others, backup))


@dataclass
class Model:
    """All that is known."""

    nodes: dict[BackupId, Node] = field(default_factory=dict)
    gone: list[BackupId] = field(default_factory=list)
    all: list[BackupId] = field(default_factory=list)
    """Those that are gone too, in the order in which they were made."""
    life: Life = Life()

    def fit(self) -> list[Node]:
        """The backups that an incremental may stand on now, oldest first."""
        return [self.nodes[one] for one in self.life.history or () if one in self.nodes]

    def unfit(self) -> list[BackupId]:
        """Backups that there are, or were, on which none may stand."""
        fit = {node.id for node in self.fit()}
        return [*(one for one in self.nodes if one not in fit), *self.gone]

    def refusal(self, parent: BackupId) -> Refusal:
        """Why none may stand on such a one."""
        if parent not in self.nodes:
            return Refusal(NotFound, f"no backup {parent}")
        if self.life.history is None:
            return Refusal(Refused, f"no incremental on {parent}: the datadir does not know its past.*take a full")
        return Refusal(Refused, f"no incremental on {parent}: this datadir has not passed through it.*take a full")

    def learn(self, backup: Backup, content: Content, *, newer: bool = False, elsewhere: bool = False) -> Node:
        """A backup is COMPLETED."""
        parent = self.nodes[backup.manifest.parent.id] if backup.manifest.parent else None
        below = parent.chain if parent else ()
        self.all.append(backup.id)
        newer = newer or bool(parent and parent.newer)
        node = self.nodes[backup.id] = Node(backup, content, (*below, backup.id), newer)
        if not elsewhere:
            self.life = self.life.after(backup.id)
        return node

    def restored(self, node: Node) -> None:
        """The data are now those of a backup."""
        self.life = Life(node.chain)

    def family(self, node: Node) -> list[Node]:
        """A backup, and all that stand on it."""
        return [one for one in self.nodes.values() if node.id in one.chain]

    def forget(self, deleted: Collection[BackupId]) -> None:
        """Backups are deleted."""
        self.gone += deleted
        self.nodes = {one: node for one, node in self.nodes.items() if one not in deleted}
