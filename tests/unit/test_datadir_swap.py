"""The swap: what it moves, keeps, puts back and puts aside, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestagent.datadir import blocker, journal, layout, place, staging, swap
from guestagent.datadir.journal import Phase
from guestagent.errors import Corrupt, GuestagentError, NotFound, Refused, UsageError
from tests.unit.datadir_scene import (
    CASES,
    MYSQL,
    NEW,
    OLD,
    REPLACING,
    Scene,
    build,
    crashed_in,
    full_disk,
    swapped,
    tree,
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; whether we sync has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=CASES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, *CASES[request.param])


def test_the_new_takes_the_place_of_the_old(scene: Scene) -> None:
    assert scene.is_old()
    kept = scene.swap()
    assert kept == (scene.ours / ".old-b7" if scene.old else None)
    assert swap.kept(scene.datadir) == ([kept] if kept else [])
    assert scene.is_new()
    assert scene.settled()
    assert swap.recover(scene.datadir) is None
    scene.staging.discard()
    assert scene.is_new()
    assert scene.ours.exists() is bool(kept)


def test_the_old_can_be_forgotten(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    swap.forget(scene.datadir, swapped(scene))
    assert tree(scene.datadir) == scene.new
    assert not scene.ours.exists()
    assert swap.kept(scene.datadir) == []


def test_what_was_half_written_goes_although_old_data_is_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    kept = swapped(scene)
    for name in (layout.JOURNAL, layout.BLOCKER, "README", layout.READY + "out"):
        (scene.ours / f"{name}.new").write_text("half of")
    (scene.ours / f"{layout.READY}back").write_text("not needed")
    assert swap.recover(scene.datadir) is None
    assert {path.name for path in scene.ours.iterdir()} == {"README", kept.name}


@pytest.mark.parametrize("case", REPLACING)
def test_the_old_can_be_put_back(case: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, *CASES[case])
    swap.put_back(scene.datadir, swapped(scene))
    assert tree(scene.datadir) == scene.old
    assert not scene.ours.exists()
    assert (scene.datadir / "lost+found").is_dir()


def test_a_label_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    first = swapped(scene)
    again = staging.open_staging(scene.datadir)
    build(again.base, MYSQL)
    second = swap.swap(scene.datadir, incoming=again.base, keep_as="b7")
    assert second == first.with_name(".old-b7-2")
    assert swap.kept(scene.datadir) == [first, second]
    assert (tree(first), tree(second), tree(scene.datadir)) == (OLD, NEW, MYSQL)
    swap.forget(scene.datadir, first)
    assert swap.kept(scene.datadir) == [second]


STRAYS = {
    "binlog.index": "stray",
    "aria_log.00000001": "stray",
    "ib_logfile0": "stray",
    "made/x": "stray",
    "pid": "stray",
}


@pytest.mark.parametrize("phase", [Phase.OUT, Phase.IN])
def test_what_a_refused_server_leaves_is_put_aside(phase: Phase, tmp_path: Path) -> None:
    scene = crashed_in(phase, tmp_path)
    present = set(os.listdir(scene.datadir))
    strays = {name: data for name, data in STRAYS.items() if name not in present}
    build(scene.datadir, strays)
    swap.recover(scene.datadir)
    assert scene.is_new()
    aside = scene.ours / (".old-b7" + layout.STRAYS)
    assert {name.split("/", 1)[1]: data for name, data in tree(aside).items()} == strays
    swap.forget(scene.datadir, scene.ours / ".old-b7")
    assert not scene.ours.exists()


def test_a_stray_where_a_new_entry_belongs_gives_way(tmp_path: Path) -> None:
    scene = crashed_in(Phase.OUT, tmp_path)
    (scene.datadir / "come").mkdir()
    (scene.datadir / "come" / "something").write_text("stray")
    swap.recover(scene.datadir)
    assert scene.is_new()


def test_what_a_server_adds_once_only_pivots_are_missing_is_part_of_the_new(tmp_path: Path) -> None:
    """InnoDB is let in before Aria and may have recovered: its files belong to the new data by then."""
    scene = crashed_in(Phase.LAST, tmp_path, last=False)
    (scene.datadir / "undo001").write_text("new")
    swap.recover(scene.datadir)
    assert tree(scene.datadir) == {**NEW, "undo001": "new"}


def test_a_server_that_runs_on_the_new_before_recovery_is_left_alone(tmp_path: Path) -> None:
    scene = crashed_in(Phase.LAST, tmp_path)
    assert (scene.datadir / "ibdata1").read_text() == "new"
    (scene.datadir / "ibtmp1").write_text("live")
    (scene.datadir / "binlog.000001").write_text("live")
    swap.recover(scene.datadir)
    assert tree(scene.datadir) == {**NEW, "ibtmp1": "live", "binlog.000001": "live"}


def test_what_comes_up_before_the_undo_goes_back_unless_an_old_entry_has_its_name(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    made = False

    def server_was_here() -> None:
        nonlocal made
        if not made and (scene.ours / ".old-b7" / "binlog.index").exists():
            made = True
            build(scene.datadir, {"binlog.index": "stray", "shop/x": "kept old"})
            full_disk()

    with pytest.MonkeyPatch.context() as patch:
        rename = os.rename

        def call(source: Path, target: Path) -> None:
            server_was_here()
            rename(source, target)

        patch.setattr(os, "rename", call)
        with pytest.raises(GuestagentError, match="no space left"):
            scene.swap()
    assert made
    assert tree(scene.datadir) == {**OLD, "shop/x": "kept old"}
    assert scene.settled()


def test_strays_put_aside_go_back_when_the_swap_is_undone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    put = blocker.put

    def put_and_leave_strays(datadir: Path, name: str) -> None:
        put(datadir, name)
        build(datadir, {"a stray": "1"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocker, "put", put_and_leave_strays)
        patch.setattr(journal, "write", write_failing_for(Phase.IN))
        with pytest.raises(GuestagentError, match="no space left"):
            scene.swap()
    assert tree(scene.datadir) == {**OLD, "a stray": "1"}
    assert sorted(os.listdir(scene.ours)) == [".restore", "README"]


def write_failing_for(phase: Phase) -> Callable[[Path, journal.Journal], None]:
    write = journal.write

    def patched(datadir: Path, found: journal.Journal) -> None:
        if found.phase is phase:
            full_disk()
        write(datadir, found)

    return patched


def test_strays_under_the_name_of_an_old_entry_are_dropped_by_the_undo(tmp_path: Path) -> None:
    scene = crashed_in(Phase.OUT, tmp_path)
    aside = scene.ours / (".old-b7" + layout.STRAYS)
    build(aside, {"0/shop/x": "stray", "1/pid": "stray"})
    found = journal.read(scene.datadir)
    assert found is not None
    journal.write(scene.datadir, found.at(Phase.BACK))
    assert "undid" in (swap.recover(scene.datadir) or "")
    assert tree(scene.datadir) == {**OLD, "pid": "stray"}
    assert not aside.exists()


@pytest.mark.parametrize("name", ["shop", "ibdata1", "aria_log_control"])
def test_a_new_entry_that_vanished_is_corrupt_and_no_server_starts(name: str, tmp_path: Path) -> None:
    scene = crashed_in(Phase.OUT, tmp_path)
    gone = scene.staging.base / name
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    for _ in range(2):
        with pytest.raises(Corrupt, match=f"{name} was removed") as caught:
            swap.recover(scene.datadir)
        assert ".old-b7" in caught.value.hint
    assert blocker.is_one(scene.datadir / "aria_log_control")
    assert tree(scene.ours / ".old-b7") == OLD


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield
        child.stdin.close()
        child.wait(timeout=10)


@pytest.mark.parametrize("name", blocker.PIVOTS)
def test_nothing_moves_under_a_running_server(name: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    with locked(scene.datadir / name), pytest.raises(Refused, match="a server runs on"):
        scene.swap()
    assert scene.is_old()
    assert scene.settled()


def test_a_server_that_starts_at_the_last_moment_is_noticed_and_the_swap_undone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    inode = (scene.datadir / "ibdata1").stat().st_ino
    with locked(scene.datadir / "ibdata1"), pytest.MonkeyPatch.context() as patch:
        asked = place.server_running
        patch.setattr(place, "server_running", lambda path: path != scene.datadir and asked(path))
        with pytest.raises(Refused, match=r"has started on .* just now"):
            scene.swap()
    assert scene.is_old()
    assert scene.settled()
    assert (scene.datadir / "ibdata1").stat().st_ino == inode


def test_a_second_swap_waits_for_the_recovery_of_the_first(tmp_path: Path) -> None:
    scene = crashed_in(Phase.OUT, tmp_path)
    with pytest.raises(Refused, match="is half done"):
        scene.swap()
    with pytest.raises(Refused, match="is half done"):
        swap.forget(scene.datadir, scene.ours / ".old-b7")
    swap.recover(scene.datadir)
    assert scene.is_new()


def test_strays_go_when_the_old_is_put_back(tmp_path: Path) -> None:
    scene = crashed_in(Phase.OUT, tmp_path)
    build(scene.datadir, {"a stray": "1"})
    swap.recover(scene.datadir)
    assert (scene.ours / (".old-b7" + layout.STRAYS)).is_dir()
    swap.put_back(scene.datadir, scene.ours / ".old-b7")
    assert tree(scene.datadir) == OLD
    assert not scene.ours.exists()


def test_only_our_own_directories_are_swapped_and_forgotten(tmp_path: Path) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    build(tmp_path / "elsewhere", NEW)
    for incoming in (tmp_path / "elsewhere", scene.staging.link(1), scene.ours, scene.datadir):
        with pytest.raises(UsageError):
            swap.swap(scene.datadir, incoming=incoming, keep_as="b7")
    with pytest.raises(UsageError):
        swap.swap(scene.datadir, incoming=scene.staging.base, keep_as="../b7")
    for path in (tmp_path / "elsewhere", scene.staging.base, scene.ours / ".old-none"):
        with pytest.raises(NotFound):
            swap.forget(scene.datadir, path)
        with pytest.raises(NotFound):
            swap.put_back(scene.datadir, path)
    assert scene.is_old()
    assert tree(tmp_path / "elsewhere") == NEW


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_directory_where_a_pivot_belongs_is_refused_at_once(side: str, tmp_path: Path) -> None:
    odd = {"ibdata1/x": "1"}
    scene = Scene(tmp_path, odd if side == "old" else OLD, odd if side == "new" else NEW)
    with pytest.raises(Refused, match="ibdata1 is a directory"):
        scene.swap()
    assert scene.is_old()
    assert scene.settled()


def test_a_pivot_that_is_a_link_is_kept_as_one(tmp_path: Path) -> None:
    (tmp_path / "far").write_text("old")
    scene = Scene(tmp_path, {**OLD, "ibdata1": f"-> {tmp_path / 'far'}"}, NEW)
    kept = swapped(scene)
    assert scene.is_new()
    swap.put_back(scene.datadir, kept)
    assert tree(scene.datadir) == scene.old
    assert (tmp_path / "far").read_text() == "old"


def test_a_datadir_without_anything_of_ours_needs_no_recovery(tmp_path: Path) -> None:
    assert swap.recover(tmp_path) is None
    assert swap.recover(tmp_path / "none") is None
    assert swap.kept(tmp_path / "none") == []


def test_the_owner_of_the_new_owns_the_datadir_before_a_server_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, OLD, NEW)
    given: list[tuple[Path, bool]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    monkeypatch.setattr(os, "lchown", lambda path, *_: given.append((path, blocker.is_one(scene.datadir / "ibdata1"))))
    kept = scene.swap()
    ready = [(scene.ours / f"{layout.READY}{phase}", True) for phase in ("out", "in", "last")]
    assert given == [(kept, False), *ready[:2], (scene.datadir, True), (scene.ours, True), ready[2]]


def test_blockers_are_known_by_their_text(tmp_path: Path) -> None:
    (tmp_path / layout.OURS).mkdir()
    blocker.put(tmp_path, "ibdata1")
    assert blocker.is_one(tmp_path / "ibdata1")
    assert "start the guestagent service" in (tmp_path / "ibdata1").read_text()
    (tmp_path / "other").write_text("some data")
    (tmp_path / "large").write_bytes((tmp_path / "ibdata1").read_bytes() + bytes(5000))
    (tmp_path / "link").symlink_to("ibdata1")
    for name in ("other", "large", "link", "none", layout.OURS):
        assert not blocker.is_one(tmp_path / name)
