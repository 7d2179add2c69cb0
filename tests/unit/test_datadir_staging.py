"""The room of a restore: made, cleared, discarded, and never cleared under a swap that has begun."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from guestagent.datadir import durable, journal, layout, place, staging
from guestagent.datadir.journal import Journal, Phase
from guestagent.errors import GuestagentError, Refused, UsageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def begin_swap(datadir: Path) -> None:
    journal.write(datadir, Journal(Phase.OUT, layout.BASE, ".old-x", frozenset(), frozenset()))


def test_a_staging_is_private_and_inside_the_target(tmp_path: Path) -> None:
    room = staging.open_staging(tmp_path)
    assert room.made == ()
    assert room.base == tmp_path / layout.OURS / ".restore" / "base"
    link = room.link(3)
    assert room.link(3) == link == room.base.with_name("link-3")
    ours = tmp_path / layout.OURS
    assert {mode(path) for path in (ours, ours / ".restore", room.base, link)} == {0o700}
    assert place.look(tmp_path).entries == frozenset()


def test_no_server_takes_our_directory_for_a_database(tmp_path: Path) -> None:
    """The name hides it from SHOW DATABASES, the file from mariabackup, the dots from MySQL (see layout)."""
    staging.open_staging(tmp_path).link(1)
    ours = tmp_path / layout.OURS
    assert ours.name.startswith("#sql")
    assert [path.name for path in ours.iterdir() if path.is_file()] == ["README"]
    assert all(path.name.startswith(".") for path in ours.iterdir() if path.is_dir())


def test_missing_directories_are_made_and_taken_away_again(tmp_path: Path) -> None:
    datadir = tmp_path / "a" / "b" / "data"
    room = staging.open_staging(datadir)
    assert room.made == (tmp_path / "a", tmp_path / "a" / "b", datadir)
    assert mode(datadir) == 0o700
    assert mode(tmp_path / "a") & 0o755 == 0o755
    (room.base / "half").write_text("x")
    room.discard()
    assert os.listdir(tmp_path) == []


def test_discard_leaves_what_is_not_of_this_restore(tmp_path: Path) -> None:
    datadir = tmp_path / "data"
    room = staging.open_staging(datadir)
    (datadir / "somebody").touch()
    room.discard()
    assert os.listdir(datadir) == ["somebody"]
    room = staging.open_staging(datadir)
    (datadir / layout.OURS / ".old-b").mkdir()
    room.discard()
    assert sorted(os.listdir(datadir / layout.OURS)) == [".old-b", "README"]


def test_an_existing_empty_target_is_left_in_place(tmp_path: Path) -> None:
    staging.open_staging(tmp_path).discard()
    assert tmp_path.is_dir()
    assert os.listdir(tmp_path) == []


def test_what_a_dead_restore_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    room = staging.open_staging(tmp_path)
    (room.link(1) / "t.delta").touch()
    (room.base / "ibdata1").touch()
    (tmp_path / layout.OURS / ".old-b").mkdir()
    again = staging.open_staging(tmp_path)
    assert os.listdir(again.base.parent) == ["base"]
    assert os.listdir(again.base) == []
    assert (tmp_path / layout.OURS / ".old-b").is_dir()


def test_a_swap_that_has_begun_is_not_cleared(tmp_path: Path) -> None:
    room = staging.open_staging(tmp_path)
    (room.base / "ibdata1").touch()
    begin_swap(tmp_path)
    room.discard()
    assert (room.base / "ibdata1").exists()
    with pytest.raises(Refused, match="is half done"):
        staging.open_staging(tmp_path)
    assert (room.base / "ibdata1").exists()


def test_a_dead_staging_is_cleared_once_nobody_needs_it(tmp_path: Path) -> None:
    (tmp_path / "ibdata1").touch()
    assert not staging.clear(tmp_path)
    room = staging.open_staging(tmp_path)
    (room.link(1) / "t.delta").touch()
    begin_swap(tmp_path)
    assert not staging.clear(tmp_path)
    assert (room.link(1) / "t.delta").exists()
    journal.remove(tmp_path)
    (tmp_path / layout.OURS / ".old-b").mkdir()
    assert staging.clear(tmp_path)
    assert sorted(os.listdir(tmp_path / layout.OURS)) == [".old-b", "README"]
    (tmp_path / layout.OURS / ".old-b").rmdir()
    staging.open_staging(tmp_path)
    assert staging.clear(tmp_path)
    assert os.listdir(tmp_path) == ["ibdata1"]


@pytest.mark.parametrize(
    "left",
    ["README.new", "journal.json.new", "journal.json.for-out", "journal.json.for-in.new", "blocker", "blocker.new"],
)
def test_scraps_of_a_crash_go_with_our_directory(tmp_path: Path, left: str) -> None:
    room = staging.open_staging(tmp_path)
    (tmp_path / layout.OURS / left).touch()
    room.discard()
    assert os.listdir(tmp_path) == []


def test_something_else_under_our_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / layout.OURS).symlink_to("elsewhere")
    with pytest.raises(Refused, match="is not a directory"):
        staging.open_staging(tmp_path)
    (tmp_path / layout.OURS).unlink()
    (tmp_path / layout.OURS).touch()
    with pytest.raises(Refused, match="is not a directory"):
        staging.open_staging(tmp_path)
    assert layout.named(tmp_path, "") == []
    assert journal.read(tmp_path) is None


def test_failures_of_the_filesystem_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = staging.open_staging(tmp_path)

    def full(path: object, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(GuestagentError, match="make room"):
        room.link(1)
    with pytest.raises(GuestagentError, match="make room"):
        staging.open_staging(tmp_path / "other")


def test_labels_name_directories_that_are_not_taken(tmp_path: Path) -> None:
    ours = tmp_path / layout.OURS
    ours.mkdir()
    assert layout.unused(tmp_path, ".old-", "b7") == ".old-b7"
    (ours / ".old-b7").mkdir()
    (ours / ".old-b7-2").touch()
    assert layout.unused(tmp_path, ".old-", "b7") == ".old-b7-3"
    for bad in ("", "-x", "a/b", "..", "a~strays", "a b", "a\n"):
        with pytest.raises(UsageError):
            layout.unused(tmp_path, ".old-", bad)


def test_a_tree_is_removed_and_a_link_to_one_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("tree")
    durable.remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["tree"]
    durable.remove_tree(tmp_path / "tree")
    durable.remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []
