"""Requests that must come to nothing, for the right reason: unfit parents, versions, tools and stores that fail."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from contextlib import nullcontext

from guestagent.errors import Cancelled, NotFound, Refused, StorageError, ToolError
from guestagent.model import BackupId, backup_id
from tests.torture.chains_model import Node, Refusal
from tests.torture.chains_player import NEWER, Player, Wrapped
from tests.torture.chains_stage import BROKEN_TOOLS, CancelsAt, FailsGets, fails_manifest, fails_puts

FOREIGN = "11.4.2"
"""A version of another series than the installed one's."""

STORE_FAULTS: dict[str, Wrapped] = {
    "the first object": lambda inner: fails_puts(inner, 1),
    "the second object": lambda inner: fails_puts(inner, 2),
    "the manifest": fails_manifest,
}

Trouble = Callable[[Player, int], None]


def unfit_parent(player: Player, pick: int) -> None:
    """An incremental on a backup that the data have not passed through, or that is gone."""
    unfit = player.model.unfit()
    parent = unfit[pick % len(unfit)]
    what = "the data have not passed through" if parent in player.model.nodes else "is gone"
    player.refused(f"parent that {what}", player.model.refusal(parent), lambda: player.asked(parent))


# -- versions


def foreign_tool(player: Player, _: int) -> None:
    """A backup by a tool of another series than the server's."""
    with player.stage.tool_of_version(FOREIGN):
        reason = Refusal(Refused, f"mariabackup {FOREIGN} is of another series than the server's .*install")
        player.refused("tool of another series than the server's", reason, lambda: player.asked(None))


def foreign_server(player: Player, pick: int) -> None:
    """An incremental on a backup of the same data by a server of another series."""
    fit = player.model.fit()
    if not fit:
        return
    parent = fit[pick % len(fit)].id
    player.restart(f"--version={FOREIGN}-MariaDB")
    with player.stage.tool_of_version(FOREIGN):
        reason = Refusal(Refused, f"{parent} is of server 10.11.*, and the server is now {FOREIGN}.*take a full")
        player.refused("parent of a server of another series", reason, lambda: player.asked(parent))
    player.restart()


def foreign_restore(player: Player, pick: int) -> None:
    """A restore by a tool of another series."""
    if not player.model.nodes:
        return
    wanted = player.node(pick).id
    with player.stage.tool_of_version(FOREIGN):
        reason = Refusal(Refused, f"mariabackup {FOREIGN} cannot prepare a backup of server 10.11.*install")
        act = lambda: player.asked_back(wanted, replace=True)  # noqa: E731
        player.refused("restore by a tool of another series", reason, act)


def older_tool(player: Player, pick: int) -> None:
    """A restore by a tool that is older than the one that made a link."""
    newer = [node.id for node in player.model.nodes.values() if node.newer]
    if newer:
        reason = Refusal(Refused, f"mariabackup .* is older than the {NEWER} that made this backup.*install")
        wanted = newer[pick % len(newer)]
        player.refused("restore by an older tool", reason, lambda: player.asked_back(wanted, replace=True))


VERSIONS: tuple[Trouble, ...] = (foreign_tool, foreign_server, foreign_restore, older_tool)

# -- restores that would cost something, or that nobody can make


def over_a_server(player: Player, pick: int) -> None:
    """Nobody has asked for the present data to go."""
    node = player.node(pick)
    with player.tool_for(node):
        reason = Refusal(Refused, f"a server runs on {player.stage.server.datadir}; .*--replace")
        player.refused("restore over a server, unasked", reason, lambda: player.asked_back(node.id))


def over_junk(player: Player, pick: int) -> None:
    """The target is no datadir."""
    node = player.node(pick)
    junk = player.stage.place / "junk"
    junk.mkdir()
    (junk / "letter").write_text("dear")
    with player.tool_for(node):
        reason = Refusal(Refused, "junk holds something that is no datadir")
        act = lambda: player.asked_back(node.id, datadir=junk, replace=True)  # noqa: E731
        player.refused("restore over what is no datadir", reason, act)
    assert [path.name for path in junk.iterdir()] == ["letter"]
    shutil.rmtree(junk)


def of_nothing(player: Player, _: int) -> None:
    """The backup is gone."""
    wanted = player.model.gone[-1] if player.model.gone else backup_id(str(uuid.uuid4()))
    reason = Refusal(NotFound, f"no backup {wanted}")
    player.refused("restore of a backup that is gone", reason, lambda: player.asked_back(wanted, replace=True))


RESTORES: tuple[Trouble, ...] = (over_a_server, over_junk, of_nothing)

# -- tools and stores that fail


def failed_backup(player: Player, how: str, parent: BackupId | None) -> None:
    """The tool or the store fails."""
    kind = "incremental" if parent else "full"
    if how in BROKEN_TOOLS:
        with player.stage.broken_tool(how, at="--backup"):
            reason = Refusal(ToolError, "mariabackup")
            player.refused(f"{kind}, the tool {how}", reason, lambda: player.asked(parent))
        return
    reason = Refusal(StorageError, "503 slow down")
    act = lambda: player.asked(parent, wrapped=STORE_FAULTS[how])  # noqa: E731
    player.refused(f"{kind}, the store fails at {how}", reason, act)


def failed_restore(player: Player, how: str, node: Node, *, in_place: bool) -> None:
    """The tool or the store fails."""
    target = player.stage.server.datadir if in_place else player.stage.place / "failed"
    broken = how in BROKEN_TOOLS
    tool = player.stage.broken_tool(how, at="--prepare") if broken else nullcontext()
    reason = Refusal(ToolError, "mariabackup") if broken else Refusal(StorageError, "503 slow down")
    wrapped: Wrapped | None = None if broken else lambda inner: FailsGets(inner, len(node.chain))
    what = f"the tool {how}" if broken else "the store fails"
    with player.tool_for(node), tool:
        act = lambda: player.asked_back(node.id, datadir=target, replace=in_place, wrapped=wrapped)  # noqa: E731
        player.refused(f"restore {'in place' if in_place else 'elsewhere'}, {what}", reason, act)
    assert in_place or not target.exists() or not list(target.iterdir()), f"{target} has something left in it"


# -- cancelled ones


def cancelled_backup(player: Player, phase: str, parent: BackupId | None) -> None:
    """Somebody asks for its end."""
    reason, watch = Refusal(Cancelled, "as the test"), CancelsAt(phase).watch()
    kind = "incremental" if parent else "full"
    player.refused(f"{kind} in {phase}", reason, lambda: player.asked(parent, watch=watch))


def cancelled_restore(player: Player, phase: str, link: int, node: Node) -> None:
    """Somebody asks for its end."""
    reason, watch = Refusal(Cancelled, "as the test"), CancelsAt(phase, link).watch()
    player.held.release()
    with player.tool_for(node):
        act = lambda: player.asked_back(node.id, watch=watch, replace=True, start=True)  # noqa: E731
        player.refused(f"restore in place in {phase}", reason, act)
