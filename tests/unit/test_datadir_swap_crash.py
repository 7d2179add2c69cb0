"""The swap under fire: old or new and never a mix, whatever is killed or fails at any step."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from guestagent.datadir import blocker, layout, staging, swap
from guestagent.datadir.journal import Phase
from guestagent.errors import GuestagentError
from tests.unit.datadir_scene import (
    CASES,
    NEW,
    OLD,
    REPLACING,
    Crash,
    Scene,
    at_each_step,
    build,
    crashed_in,
    crashes_at,
    full_disk,
    killed_at,
    scene_at,
    scenes,
    steps_of,
    swapped,
    tree,
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; whether we sync has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_step_leaves_the_old_or_the_new(case: str, tmp_path: Path) -> None:
    outcomes = []
    for number, scene in scenes(tmp_path, *CASES[case]):
        killed = killed_at(number, scene.swap)
        assert scene.no_server_finds_a_mix(), number
        said = swap.recover(scene.datadir)
        assert scene.settled()
        assert scene.is_old() or scene.is_new(), number
        assert said is None or ("undid" in said) is scene.is_old()
        assert swap.recover(scene.datadir) is None
        outcomes.append(scene.is_new())
        if not killed:
            break
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes), "once the new is certain it stays certain"
    assert outcomes[0] is False
    assert outcomes[-1] is True


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("case", CASES)
def test_a_recovery_may_be_killed_at_any_step_too(case: str, phase: Phase, tmp_path: Path) -> None:
    crashed = crashed_in(phase, tmp_path, CASES[case], last=phase is Phase.BACK)
    for number in range(200):
        scene = scene_at(tmp_path / "again", crashed)
        interrupted = crashes_at(number, lambda: swap.recover(scene.datadir))  # noqa: B023
        assert scene.no_server_finds_a_mix(), number
        swap.recover(scene.datadir)
        assert scene.settled()
        assert scene.is_old() if phase is Phase.BACK else scene.is_new(), number
        if not interrupted:
            break
    assert 5 < number < 199


def test_a_recovery_may_be_killed_again_and_again(tmp_path: Path) -> None:
    """Each attempt comes a little further, however the swap was killed."""
    for number, scene in scenes(tmp_path):
        interrupted = crashes_at(number, scene.swap)
        attempts = 0
        while crashes_at(12 + attempts, lambda: swap.recover(scene.datadir)):  # noqa: B023
            assert scene.no_server_finds_a_mix(), (number, attempts)
            attempts += 1
        assert scene.settled()
        assert scene.is_old() or scene.is_new(), number
        if not interrupted:
            break


@pytest.mark.parametrize("case", REPLACING)
def test_putting_back_may_be_killed_at_any_step(case: str, tmp_path: Path) -> None:
    old, new = CASES[case]
    outcomes = []
    for number, scene in scenes(tmp_path, old, new):
        kept = swapped(scene)
        interrupted = crashes_at(number, lambda: swap.put_back(scene.datadir, kept))  # noqa: B023
        assert scene.no_server_finds_a_mix(), number
        said = swap.recover(scene.datadir) or ""
        assert scene.settled()
        back = tree(scene.datadir) == old
        assert back or scene.is_new(), number
        assert ("putting the old data" in said) <= back
        assert ("undid" in said) <= (not back)
        assert back is (not scene.ours.exists())
        outcomes.append(back)
        if not interrupted:
            break
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (False, True)


def test_forgetting_may_be_killed_at_any_step(tmp_path: Path) -> None:
    for number, scene in scenes(tmp_path):
        kept = swapped(scene)
        interrupted = crashes_at(number, lambda: swap.forget(scene.datadir, kept))  # noqa: B023
        assert tree(scene.datadir) == NEW
        said = swap.recover(scene.datadir)
        assert [tree(path) for path in swap.kept(scene.datadir)] in ([OLD], [])
        assert said is None or "deleted what was left" in said
        assert not layout.named(scene.datadir, layout.TRASH)
        assert scene.ours.exists() is bool(swap.kept(scene.datadir))
        if not interrupted:
            assert number > 5
            break


def fails(scene: Scene, when: Callable[[int], bool]) -> bool:
    """Swap while the disk is full at the steps that ``when`` names; whether that failed."""

    def fail(step: int) -> None:
        if when(step):
            full_disk()

    with at_each_step(fail):
        try:
            scene.swap()
        except GuestagentError as error:
            return "no space left" in error.what and "make room" in error.hint
    return False


@pytest.mark.parametrize("case", CASES)
def test_a_failure_at_any_step_is_undone_or_waits_for_recovery(case: str, tmp_path: Path) -> None:
    undone = waiting = 0
    for number, scene in scenes(tmp_path, *CASES[case]):
        if not fails(scene, number.__eq__):
            assert scene.is_new()
            break
        assert scene.no_server_finds_a_mix(), number
        if staging.half_swapped(scene.datadir):
            waiting += 1
            scene.staging.discard()
            swap.recover(scene.datadir)
        else:
            undone += 1
        assert scene.settled()
        assert scene.is_old() or scene.is_new(), number
    assert undone > 10
    assert waiting > 5


def test_an_undo_may_be_killed_at_any_step(tmp_path: Path) -> None:
    """And what a server has done to the old data once they are back is not swapped away by the recovery."""
    begun = steps_of(Phase.OUT, tmp_path / "dry", (OLD, NEW))[0]
    lived = 0
    for number, scene in scenes(tmp_path, OLD, NEW):

        def fail_then_die(step: int, fatal: int = begun + 6 + number) -> None:
            if step == begun + 5:
                full_disk()
            if step == fatal:
                raise Crash

        with at_each_step(fail_then_die), suppress(Crash, GuestagentError):
            scene.swap()
        assert scene.no_server_finds_a_mix(), number
        if not staging.half_swapped(scene.datadir):
            assert scene.is_old()
            break
        alive = tree(scene.datadir) == OLD
        lived += alive
        if alive:
            build(scene.datadir, {"since/t.ibd": "precious"})
        swap.recover(scene.datadir)
        assert scene.settled()
        assert tree(scene.datadir) == {**OLD, "since/t.ibd": "precious"} if alive else scene.is_old() or scene.is_new()
    assert lived
    assert number > 10


def test_a_disk_that_stays_full_loses_nothing(tmp_path: Path) -> None:
    """The undo fails, too: the data wait behind their blockers until there is room."""
    for number, scene in scenes(tmp_path):
        if not fails(scene, number.__le__):
            break
        assert scene.no_server_finds_a_mix(), number
        swap.recover(scene.datadir)
        assert scene.settled()
        assert scene.is_old() or scene.is_new(), number


def test_what_the_journal_says_is_on_the_disk_before_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renames that are not synced may be lost in a power cut while later ones are not."""
    scene = Scene(tmp_path, OLD, NEW)
    dirty: set[Path] = set()
    synced: set[Path] = set()
    events: list[str] = []
    rename, link = os.rename, os.link

    def renaming(source: Path, target: Path) -> None:
        where = {Path(source).parent, Path(target).parent}
        if source.name.endswith(".new") or source.name.startswith(layout.JOURNAL):
            assert source in synced, "a name for bytes that are not on the disk"
            synced.add(target)
        if target.name == layout.JOURNAL:
            assert not dirty - {scene.ours}, "moves of the phase before are not durable"
            events.append("journal")
        elif target.parent == scene.datadir and source.parent == scene.staging.base and source.name in blocker.PIVOTS:
            assert not dirty - {scene.staging.base}, "a server may start before its data are durable"
            events.append(source.name)
        elif scene.datadir in where and source.name != layout.BLOCKER:
            assert scene.ours not in dirty, "moves before the journal says so"
            assert source.parent != scene.staging.base or events.count("journal") == 3
        rename(source, target)
        synced.discard(source)
        dirty.update(where)

    def linking(source: Path, target: Path, **options: bool) -> None:
        link(source, target, **options)
        dirty.add(Path(target).parent)

    def syncing(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.add(path)
        dirty.discard(path)

    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(os, "link", linking)
    monkeypatch.setattr(os, "fsync", syncing)
    scene.swap()
    assert events == ["journal"] * 4 + ["ibdata1", "aria_log_control"]
    assert not dirty - {scene.staging.base, scene.ours / ".old-b7"}
