"""The swap on a disk that fills up: undone at once or done, and never left in the middle for want of room."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestagent.datadir import blocker, layout, staging, swap
from guestagent.datadir.journal import Phase
from guestagent.errors import GuestagentError
from tests.unit.datadir_scene import (
    CASES,
    NEW,
    OLD,
    Scene,
    build,
    crashed_in,
    crashes_at,
    full_disk,
    scenes,
    swapped,
    tree,
)

ALLOCATING = ("open", "mkdir", "link", "symlink", "fsync")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk refuses before anything is synced."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@contextmanager
def room_for(most: int) -> Iterator[None]:
    """A disk that is full after so many calls that need room; a file loses its end when it is."""
    numbers = itertools.count()

    def needs_room(name: str, first: object, second: object = 0) -> bool:
        if name == "open":
            return isinstance(second, int) and bool(second & os.O_CREAT)
        return name != "fsync" or (isinstance(first, int) and stat.S_ISREG(os.fstat(first).st_mode))

    def wrapped(original: Callable[..., object], name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if needs_room(name, *arguments[:2]) and next(numbers) >= most:
                if name == "fsync" and isinstance(arguments[0], int):
                    os.ftruncate(arguments[0], 7)
                full_disk()
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ALLOCATING:
            patch.setattr(os, name, wrapped(getattr(os, name), name))
        yield


def has_room(work: Callable[[], object], most: int) -> bool:
    """Do ``work`` on a disk with room for ``most`` calls; whether it was done, and not told that there is none."""
    told = ""
    with room_for(most):
        try:
            work()
        except GuestagentError as error:
            told = f"{error.what} - {error.hint}"
    assert re.search("no space left.* - make room", told) or not told
    return not told


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_is_full_from_any_step_on_leaves_the_old_data_complete_and_startable(
    case: str, tmp_path: Path
) -> None:
    for number, scene in scenes(tmp_path, *CASES[case]):
        if has_room(scene.swap, number):
            assert scene.is_new()
            break
        assert scene.settled(), number
        assert scene.is_old(), number
        assert not any(blocker.is_one(scene.datadir / name) for name in blocker.PIVOTS)
        scene.staging.discard()
        assert not scene.ours.exists()
    assert number > 10


def test_also_where_the_old_data_are_put_back(tmp_path: Path) -> None:
    for number, scene in scenes(tmp_path):
        kept = swapped(scene)
        if has_room(lambda: swap.put_back(scene.datadir, kept), number):  # noqa: B023
            assert tree(scene.datadir) == OLD
            break
        assert scene.settled(), number
        assert scene.is_new(), number
    assert number > 15


def test_a_stray_for_which_there_is_no_room_is_no_obstacle_either(tmp_path: Path) -> None:
    """It may turn up until something new is in: the swap is undone, and the stray where it was."""
    back: list[list[str]] = []
    for number, scene in scenes(tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            leave_strays(scene, patch)
            done = has_room(scene.swap, number)
        if done:
            assert scene.is_new()
            break
        assert scene.settled(), number
        assert tree(staging.Staging(scene.datadir, ()).base) == NEW
        assert {**tree(scene.datadir), **STRAYS} == {**OLD, **STRAYS}, number
        back.append(sorted(STRAYS.keys() & tree(scene.datadir).keys()))
    assert back[-4:] == [["early"]] * 2 + [["early", "late"]] * 2, "two directories are made for each"


STRAYS = {"early": "stray", "late": "stray"}


def leave_strays(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """A refused server leaves one file as the old data move out, and one as the new are about to move in."""
    rename = os.rename

    def call(source: Path, target: Path) -> None:
        rename(source, target)
        phase = source.name.removeprefix(layout.READY)
        if target.name == layout.JOURNAL and phase in ("out", "in"):
            (scene.datadir / ("early" if phase == "out" else "late")).write_text("stray")

    patch.setattr(os, "rename", call)


@pytest.mark.parametrize("case", CASES)
def test_what_a_crash_leaves_is_ended_without_any_room(case: str, tmp_path: Path) -> None:
    for number, scene in scenes(tmp_path, *CASES[case]):
        crashed = crashes_at(number, scene.swap)
        with room_for(0):
            swap.recover(scene.datadir)
        assert scene.settled(), number
        assert scene.is_old() or scene.is_new(), number
        if not crashed:
            break
    assert number > 40


@pytest.mark.parametrize("phase", [Phase.OUT, Phase.IN])
def test_the_swap_of_an_older_version_is_ended_once_there_is_room(phase: Phase, tmp_path: Path) -> None:
    scene = crashed_in(phase, tmp_path, last=False)
    for path in layout.named(scene.datadir, layout.READY):
        path.unlink()
    assert not has_room(lambda: swap.recover(scene.datadir), 0)
    assert scene.no_server_finds_a_mix()
    swap.recover(scene.datadir)
    assert scene.settled()
    assert scene.is_new()


def test_a_stray_waits_for_room_when_a_recovery_finds_it(tmp_path: Path) -> None:
    scene = crashed_in(Phase.OUT, tmp_path)
    build(scene.datadir, {"a stray": "1"})
    for most in (0, 1):
        assert not has_room(lambda: swap.recover(scene.datadir), most)
        assert scene.no_server_finds_a_mix()
    swap.recover(scene.datadir)
    assert scene.is_new()
    assert list(tree(scene.ours / (".old-b7" + layout.STRAYS)).values()) == ["1"]
