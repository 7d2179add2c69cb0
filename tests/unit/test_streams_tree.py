"""Files below one directory: paths opened through directories that are kept, and nothing outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestagent.streams import tree as room
from guestagent.streams.tree import OpenFile, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    made.close()


def put(tree: Tree, path: bytes, data: bytes = b"x") -> None:
    with OpenFile(tree) as file:
        file.create(path)
        file.write(path, memoryview(data), 0)


def descriptors() -> int:
    """Those of files and directories: sockets that other tests have left may be closed at any time."""
    found = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sum(":[" not in path for path in found)


def test_a_directory_is_opened_once(tree: Tree, tmp_path: Path) -> None:
    put(tree, b"db/one")
    before = descriptors()
    for number in range(20):
        put(tree, b"db/%d" % number)
    assert descriptors() == before
    assert len(list((tmp_path / "db").iterdir())) == 21


def test_more_directories_than_are_kept_work_and_cost_no_descriptors(tree: Tree, tmp_path: Path) -> None:
    before = descriptors()
    for number in range(room.KEPT + 20):
        put(tree, b"db%d/table" % number)
    assert descriptors() == before + room.KEPT - 1
    put(tree, b"db%d/other" % (room.KEPT + 10))
    assert len(list(tmp_path.glob("*/*"))) == room.KEPT + 21


def test_a_failure_in_a_directory_that_is_not_kept_leaves_no_descriptor(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "KEPT", 1)
    put(tree, b"db/one")
    before = descriptors()
    with pytest.raises(FileExistsError):
        put(tree, b"db/one")
    with pytest.raises(NotADirectoryError):
        put(tree, b"db/one/two")
    assert descriptors() == before


def test_many_workers_agree_on_one_directory(tree: Tree, tmp_path: Path) -> None:
    before = descriptors()
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(put, tree, b"db/%d" % number) for number in range(200)]:
            done.result()
    assert descriptors() <= before + 8
    assert len(list((tmp_path / "db").iterdir())) == 200


def test_a_worker_that_found_another_ones_directory_closes_its_own(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = room._made

    def slower(parent: int, name: bytes) -> int:
        monkeypatch.setattr(room, "_made", opened)
        put(tree, b"db/faster")
        return opened(parent, name)

    before = descriptors()
    monkeypatch.setattr(room, "_made", slower)
    put(tree, b"db/slower")
    assert descriptors() == before + 1
    assert sorted(os.listdir(tmp_path / "db")) == ["faster", "slower"]


def test_after_the_end_nothing_is_written_anywhere(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    put(tree, b"db/one")
    tree.close()
    for path in (b"two", b"db/two", b"other/two"):
        with pytest.raises(OSError, match="Bad file descriptor"):
            put(tree, path)
    assert [path.name for path in tmp_path.rglob("*")] == ["db", "one"]


def test_a_file_stays_open_until_another_is_written_to(tree: Tree, tmp_path: Path) -> None:
    with OpenFile(tree) as file:
        file.create(b"one")
        file.create(b"two")
        before = descriptors()
        for _ in range(3):
            file.write(b"one", memoryview(b"ab"), 2)
        file.write(b"two", memoryview(b"c"), 0)
        assert descriptors() == before
    assert descriptors() == before - 1
    assert ((tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()) == (b"\0\0ab", b"c")


def test_links_are_not_followed(tree: Tree, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "db").symlink_to(outside)
    (tmp_path / "file").symlink_to(outside / "file")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        put(tree, b"db/one")
    with pytest.raises(OSError, match="symbolic links"), OpenFile(tree) as file:
        file.write(b"file", memoryview(b"x"), 0)
    assert not list(outside.iterdir())
