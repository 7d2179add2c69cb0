"""A chain as a state machine: hypothesis decides what comes next, and a model knows what must come of it."""

from __future__ import annotations

import sys
from typing import ClassVar

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from guestagent.model import BackupId
from tests.torture import chains_trouble as trouble
from tests.torture.chains_player import NEWER, Deeds, Player
from tests.torture.chains_stage import BROKEN_TOOLS, Flavour, Stage, loses_answers
from tests.torture.chains_work import KINDS

MOST_NODES, MOST_RESTORES = 8, 4
FIRST_TABLES = 6
STRANGERS = 2
BACKUP_PHASES = ("preflight", "dump", "publish")
RESTORE_PHASES = ("plan", "fetch", "prepare", "seal", "stop", "start")

_DEED = st.tuples(st.sampled_from(KINDS), st.integers(0, 9999))
DEEDS = st.lists(_DEED, min_size=1, max_size=10)
PICK = st.integers(0, 63)
FLAVOURS = st.builds(
    Flavour,
    compression=st.sampled_from(["zstd", "none"]),
    sealed=st.booleans(),
    proven=st.booleans(),
    aside=st.booleans(),
)


def _some(machine: Chains) -> bool:
    return bool(machine.player.model.nodes)


def _room(machine: Chains) -> bool:
    return len(machine.player.model.nodes) < MOST_NODES


def _fit(machine: Chains) -> bool:
    return _room(machine) and bool(machine.player.model.fit())


def _restorable(machine: Chains) -> bool:
    return _some(machine) and machine.player.restores < MOST_RESTORES


class Chains(RuleBasedStateMachine):
    """One chain, from its first full on; ``stage`` and ``runs`` are set by a class of it that is to be played."""

    stage: ClassVar[Stage]
    runs: ClassVar[list[Player]]
    player: Player

    def __init__(self) -> None:
        super().__init__()
        self._around = sys.exc_info()[1]
        self._begun = False

    @initialize(dice=st.integers(0, 1 << 16), flavour=FLAVOURS, deeds=st.lists(_DEED, max_size=20))
    def begin(self, dice: int, flavour: Flavour, deeds: Deeds) -> None:
        """A new server with some data, and a full."""
        assume(dice)  # hypothesis begins with the simplest of all chains, each time: that one is not worth it
        self.player = Player(self.stage, flavour)
        self.runs.append(self.player)
        self._begun = True
        self.player.work([("create", dice + number) for number in range(FIRST_TABLES)] + deeds)
        self.player.back_up(None, "full")

    # -- backups

    @rule(deeds=DEEDS, older=st.integers(0, 3))
    @precondition(_fit)
    def incremental(self, deeds: Deeds, older: int) -> None:
        """Work, and an incremental: on the newest backup, or the one before, or ..."""
        self.player.work(deeds)
        fit = self.player.model.fit()
        parent = fit[max(0, len(fit) - 1 - older)]
        row = "incremental" if parent is fit[-1] else "incremental on an older parent"
        self.player.back_up(parent.id, row)

    @rule(deeds=DEEDS)
    @precondition(_fit)
    def latest(self, deeds: Deeds) -> None:
        """An incremental on whatever is the latest."""
        self.player.work(deeds)
        newest = self.player.model.fit()[-1]
        made = self.player.back_up("latest", "incremental on the latest")
        assert made.chain[-2] == newest.id, "the latest was another one"

    @rule(deeds=DEEDS)
    @precondition(_room)
    def full(self, deeds: Deeds) -> None:
        """Another full."""
        self.player.work(deeds)
        self.player.back_up(None, "full")

    @rule(deeds=DEEDS)
    @precondition(_fit)
    def newer_tool(self, deeds: Deeds) -> None:
        """An incremental by a tool that is a little newer, which nobody may restore with the old one."""
        self.player.work(deeds)
        parent = self.player.model.fit()[-1]
        with self.stage.tool_of_version(NEWER):
            self.player.back_up(parent.id, "incremental by a newer tool", newer=True)

    @rule(deeds=DEEDS)
    @precondition(_fit)
    def lost_answer(self, deeds: Deeds) -> None:
        """A store that keeps a manifest, and does not say so."""
        self.player.work(deeds)
        parent = self.player.model.fit()[-1]
        self.player.back_up(parent.id, "incremental, the store's answer is lost", wrapped=loses_answers)

    # -- restores

    @rule(pick=PICK, deeds=DEEDS)
    @precondition(_restorable)
    def restore_in_place(self, pick: int, deeds: Deeds) -> None:
        """Any backup, in the place of the present data, which go on from there."""
        node = self.player.node(pick)
        self.player.restore_in_place(node)
        self._try_strangers()
        self.player.work(deeds)
        if _room(self):
            self.player.back_up(node.id, "fork: incremental after a restore")

    @rule(pick=PICK)
    @precondition(_restorable)
    def restore_elsewhere(self, pick: int) -> None:
        """Any backup, into an empty directory."""
        self.player.restore_elsewhere(self.player.node(pick))

    @rule(pick=PICK, deeds=DEEDS)
    @precondition(lambda self: _restorable(self) and _room(self))
    def go_on_elsewhere(self, pick: int, deeds: Deeds) -> None:
        """Another instance goes on from any backup."""
        self.player.go_on_elsewhere(self.player.node(pick), deeds)

    # -- what comes to nothing

    @rule(pick=PICK)
    @precondition(lambda self: self.player.model.unfit())
    def unfit_parent(self, pick: int) -> None:
        """An incremental on a backup that the data have not passed through, or that is gone."""
        trouble.unfit_parent(self.player, pick)

    @rule(case=st.sampled_from(trouble.VERSIONS), pick=PICK)
    def versions(self, case: trouble.Trouble, pick: int) -> None:
        """Versions that do not fit."""
        case(self.player, pick)

    @rule(case=st.sampled_from(trouble.RESTORES), pick=PICK)
    @precondition(_some)
    def refused_restore(self, case: trouble.Trouble, pick: int) -> None:
        """Restores that would cost something, or that nobody can make."""
        case(self.player, pick)

    @rule(how=st.sampled_from([*BROKEN_TOOLS, *trouble.STORE_FAULTS]), full=st.booleans())
    def failed_backup(self, how: str, full: bool) -> None:
        """A tool or a store that fails."""
        trouble.failed_backup(self.player, how, self._parent(full=full))

    @rule(how=st.sampled_from([*BROKEN_TOOLS, "the store"]), pick=PICK, in_place=st.booleans())
    @precondition(_some)
    def failed_restore(self, how: str, pick: int, in_place: bool) -> None:
        """A tool or a store that fails."""
        trouble.failed_restore(self.player, how, self.player.node(pick), in_place=in_place)

    @rule(phase=st.sampled_from(BACKUP_PHASES), full=st.booleans())
    def cancelled_backup(self, phase: str, full: bool) -> None:
        """Cancelled in each phase."""
        trouble.cancelled_backup(self.player, phase, self._parent(full=full))

    @rule(phase=st.sampled_from(RESTORE_PHASES), link=st.integers(1, 4), pick=PICK)
    @precondition(_some)
    def cancelled_restore(self, phase: str, link: int, pick: int) -> None:
        """Cancelled in each phase, the last ones too."""
        trouble.cancelled_restore(self.player, phase, link, self.player.node(pick))

    def _parent(self, *, full: bool) -> BackupId | None:
        fit = self.player.model.fit()
        return None if full or not fit else fit[-1].id

    # -- the rest

    @rule(pick=PICK, cascade=st.booleans())
    @precondition(lambda self: len(self.player.model.nodes) > 1)
    def delete(self, pick: int, cascade: bool) -> None:
        """Any backup, whether others stand on it or not."""
        self.player.delete(self.player.node(pick), cascade=cascade)

    @rule(life=st.sampled_from(["wipe", "save", "roll_back", "restart"]))
    def another_life(self, life: str) -> None:
        """A server made anew, copied, put back to an old copy of its disk, restarted."""
        getattr(self.player, life)()
        self._try_strangers()

    def _try_strangers(self) -> None:
        """Backups that the data have not passed through, now that these are others."""
        for number in range(min(STRANGERS, len(self.player.model.unfit()))):
            trouble.unfit_parent(self.player, number)

    @rule(number=st.integers(0, 99))
    def hold(self, number: int) -> None:
        """A session with temporary tables and a transaction without end."""
        self.player.tell(f"a session holds {number}")
        self.player.held.begin(number)

    @rule(deeds=DEEDS)
    def work(self, deeds: Deeds) -> None:
        """Work alone."""
        self.player.work(deeds)

    def teardown(self) -> None:
        """The end: everything is looked at once more, unless it went wrong already."""
        if not self._begun:
            return
        error = sys.exc_info()[1]
        try:
            if error is self._around:
                self.player.finish()
            elif isinstance(error, Exception):
                self.player.wrong = _line(error)
        except Exception as wrong:
            self.player.wrong = _line(wrong)
            raise
        finally:
            self.player.held.release()


def _line(error: Exception) -> str:
    return f"{type(error).__name__} {error}".replace("\n", " ")
