"""The file driver: what a crash leaves, what a disk refuses, and what a listing must not show."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from guestagent.errors import ObjectExists, ObjectMissing, StorageDenied, StorageError, UsageError
from guestagent.storage import file
from guestagent.storage.file import STALE_AFTER, TEMPORARY, FileStorage

REPO = Path(__file__).resolve().parents[2]
KILLED_PUT = """
import os, signal, sys
from pathlib import Path
from guestagent.storage.file import FileStorage
store = FileStorage(Path(sys.argv[1]))
store.put("guest/b1/data/00000000", b"whole")
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
store.put("guest/b1/data/00000001", b"x" * 100000)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> FileStorage:
    return FileStorage(root)


def test_a_filesystem_that_links_over_what_is_there_is_found_out(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.has_conditional_put("a/probe")
    monkeypatch.setattr(os, "link", shutil.copy)
    assert not store.has_conditional_put("a/other")
    monkeypatch.setattr(os, "link", lambda *_: refusing(errno.EPERM)(_))
    with pytest.raises(StorageDenied, match="cannot write a/third"):
        store.has_conditional_put("a/third")


def keys(store: FileStorage) -> list[str]:
    return [info.key for info in store.list()]


def temporaries(root: Path) -> list[Path]:
    return sorted(root.rglob(f"{TEMPORARY}*"))


def refusing(number: int) -> Callable[[object], NoReturn]:
    def refuse(_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


# ---- crashes ----


def test_a_killed_put_leaves_nothing_that_shows(root: Path, store: FileStorage) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_PUT, str(root)], cwd=REPO, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(temporaries(root)) == 1
    assert keys(store) == ["guest/b1/data/00000000"]
    with pytest.raises(ObjectMissing):
        store.get("guest/b1/data/00000001", limit=10**6)


def test_a_folder_with_nothing_but_leftovers_does_not_show(root: Path, store: FileStorage) -> None:
    (root / "guest/b1/data").mkdir(parents=True)
    (root / "guest/b1/data" / f"{TEMPORARY}abc").write_bytes(b"x")
    assert list(store.folders("guest/")) == []
    assert keys(store) == []


def test_old_leftovers_go_with_the_next_delete_below_the_same_first_folder(root: Path, store: FileStorage) -> None:
    store.put("guest/b1/manifest.json", b"1")
    store.put("other/b1/manifest.json", b"1")
    left = [
        root / f"{TEMPORARY}top",
        root / f"guest/b1/{TEMPORARY}beside",
        root / f"guest/b2/data/{TEMPORARY}far",
        root / f"guest/b3/{TEMPORARY}fresh",
        root / f"other/b1/{TEMPORARY}else",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        then = time.time() - (60 if path.name.endswith("fresh") else STALE_AFTER + 60)
        os.utime(path, (then, then))
    store.delete(["guest/b1/manifest.json"])
    assert temporaries(root) == sorted(left[3:])
    assert not (root / "guest/b1").exists()
    assert not (root / "guest/b2").exists()
    assert keys(store) == ["other/b1/manifest.json"]


def test_a_leftover_that_cannot_go_is_no_error(root: Path, store: FileStorage) -> None:
    (root / f"guest/{TEMPORARY}folder/x").mkdir(parents=True)
    os.utime(root / f"guest/{TEMPORARY}folder", (1, 1))
    (root / f"guest/{TEMPORARY}folder/x/file").write_bytes(b"")
    os.utime(root / f"guest/{TEMPORARY}folder", (1, 1))
    store.put("guest/a", b"")
    store.delete(["guest/a"])
    assert (root / f"guest/{TEMPORARY}folder/x/file").exists()


def test_everything_is_synced_in_the_order_that_a_crash_needs(
    root: Path, store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def recorded_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("temporary" if path.name.startswith(TEMPORARY) else str(path.relative_to(root.parent)))
        sync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    store.put("a/b/key", b"1")
    assert steps == [".", "temporary", "rename", "root/a/b", "root/a", "root"]
    steps.clear()
    store.put_new("a/b/new", b"1")
    assert steps == ["temporary", "root/a/b", "root/a", "root"]
    steps.clear()
    store.delete(["a/b/key"])
    assert steps == ["root/a/b"]
    steps.clear()
    store.delete(["a/b/new"])
    assert steps == ["root"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_put_that_fails_leaves_the_old_object_and_no_leftover(
    root: Path, store: FileStorage, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store.put("a/key", b"old")
    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", refusing(errno.EIO))
        else:
            patch.setattr(Path, "replace", lambda _self, _target: refusing(errno.EIO)(None))
        with pytest.raises(StorageError, match=r"cannot write a/key in file://.*: Input/output error"):
            store.put("a/key", b"new")
    assert store.get("a/key", limit=10) == b"old"
    assert temporaries(root) == []


def test_put_new_that_loses_leaves_no_leftover(root: Path, store: FileStorage) -> None:
    store.put_new("a/key", b"1")
    with pytest.raises(ObjectExists):
        store.put_new("a/key", b"2")
    assert temporaries(root) == []


def test_of_eight_that_put_new_at_once_one_wins(store: FileStorage) -> None:
    start = threading.Barrier(8)

    def work(worker: int) -> bool:
        start.wait(timeout=30)
        try:
            store.put_new("a/key", f"{worker}".encode())
        except ObjectExists:
            return False
        assert store.get("a/key", limit=1) == f"{worker}".encode()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == [False] * 7 + [True]


# ---- folders that come and go ----


def test_delete_removes_folders_that_it_empties_but_not_the_root(root: Path, store: FileStorage) -> None:
    store.put("a/b/c/key", b"")
    store.put("a/d/key", b"")
    store.put("top", b"")
    store.delete(["a/b/c/key"])
    assert sorted(path.name for path in (root / "a").iterdir()) == ["d"]
    store.delete(["a/d/key", "top"])
    assert root.is_dir()
    assert list(root.iterdir()) == []


def test_puts_and_deletes_in_one_folder_do_not_disturb_each_other(store: FileStorage) -> None:
    stop = time.monotonic() + 1

    def work(worker: int) -> int:
        turns = 0
        while not turns or time.monotonic() < stop:
            key = f"guest/data/{worker}"
            store.put(key, b"1")
            assert store.get(key, limit=1) == b"1"
            store.delete([key])
            list(store.list())
            turns += 1
        return turns

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(work, range(4))) > 0
    assert keys(store) == []


def test_a_folder_that_vanishes_for_ever_is_told(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*, prefix: str, dir: Path) -> tuple[int, str]:
        raise FileNotFoundError(errno.ENOENT, prefix, str(dir))

    monkeypatch.setattr(tempfile, "mkstemp", gone)
    with pytest.raises(StorageError, match="vanishes"):
        store.put("a/key", b"1")


def test_a_root_that_is_missing_is_made_by_the_first_put_alone(root: Path, store: FileStorage) -> None:
    with pytest.raises(ObjectMissing):
        store.get("key", limit=1)
    assert keys(store) == []
    store.delete(["a/key", "key"])
    assert not root.exists()
    store.put("key", b"1")
    assert root.is_dir()


def test_an_object_that_vanishes_during_a_listing_is_left_out(
    root: Path, store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "b/c", "d"):
        store.put(key, b"1")
    listing = store.list()
    assert next(listing).key == "a"
    (root / "b/c").unlink()
    (root / "b").rmdir()
    (root / "d").unlink()
    assert list(listing) == []


# ---- what a file system refuses ----


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, StorageError, "the store is full; make room"),
        (errno.EDQUOT, StorageError, "the store is full; make room"),
        (errno.EACCES, StorageDenied, "Permission denied; let the agent's user"),
        (errno.EPERM, StorageDenied, "not permitted; let the agent's user"),
        (errno.EROFS, StorageError, "Read-only file system; let the agent's user"),
        (errno.EIO, StorageError, "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_told(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError], words: str
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    with pytest.raises(StorageError, match=f"cannot write key in file://.*{words}") as told:
        store.put("key", b"1")
    assert type(told.value) is kind


def test_a_place_where_nobody_may_write_is_told() -> None:
    with pytest.raises(StorageDenied, match="cannot write a/key in file:///sys/guestagent"):
        FileStorage(Path("/sys/guestagent")).put("a/key", b"1")


def test_an_error_without_words_is_still_told(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> NoReturn:
        raise OSError("something odd")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="something odd"):
        store.put("key", b"1")


def test_a_file_where_a_folder_is_needed_is_told(root: Path, store: FileStorage) -> None:
    store.put("a", b"1")
    with pytest.raises(StorageError, match="cannot write a/b in"):
        store.put("a/b", b"1")
    store.put("c/d", b"1")
    with pytest.raises(StorageError, match="cannot write c in"):
        store.put("c", b"1")
    assert temporaries(root) == []


def test_a_listing_that_the_disk_refuses_is_told(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", refusing(errno.EIO))
    with pytest.raises(StorageError, match="cannot list objects in file://"):
        keys(store)


# ---- what is no object of ours ----


def test_names_of_temporary_files_are_no_keys(store: FileStorage) -> None:
    for key in (f"{TEMPORARY}x", f"a/{TEMPORARY}x", f"{TEMPORARY}x/a"):
        with pytest.raises(UsageError, match="temporary files"):
            store.put(key, b"")


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path, root: Path, store: FileStorage) -> None:
    outside = tmp_path / "root-outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not ours")
    store.put("a/key", b"1")
    (root / "link").symlink_to(outside)
    (root / "a/file-link").symlink_to(outside / "secret")
    for ask in (
        lambda: store.put("link/new", b""),
        lambda: store.put_new("link/new", b""),
        lambda: store.get("link/secret", limit=100),
        lambda: store.get("a/file-link", limit=100),
        lambda: store.size("link/secret"),
        lambda: store.delete(["link/secret"]),
        lambda: list(store.list("link/")),
        lambda: list(store.folders("link/")),
    ):
        with pytest.raises(UsageError, match="leaves file://"):
            ask()
    assert keys(store) == ["a/key"]
    assert list(store.folders()) == ["a"]
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_root_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = FileStorage(tmp_path / "link")
    store.put("a/key", b"1")
    assert (tmp_path / "real/a/key").read_bytes() == b"1"
    assert keys(store) == ["a/key"]


def test_a_link_in_the_way_of_a_put_is_replaced_or_taken(tmp_path: Path, root: Path, store: FileStorage) -> None:
    root.mkdir()
    (root / "dangling").symlink_to(root / "nothing")
    with pytest.raises(ObjectExists):
        store.put_new("dangling", b"1")
    assert not (root / "nothing").exists()


def test_what_others_left_under_names_that_are_no_keys_does_not_show(root: Path, store: FileStorage) -> None:
    store.put("key", b"1")
    (root / os.fsdecode(b"not-utf-8-\xff")).write_bytes(b"")
    (root / "two\nlines").write_bytes(b"")
    os.mkfifo(root / "pipe")
    assert keys(store) == ["key"]
    assert list(store.folders()) == []


def test_objects_are_for_the_agents_user_alone(root: Path, store: FileStorage) -> None:
    store.put("a/key", b"1")
    assert (root / "a/key").stat().st_mode & 0o077 == 0


def test_the_urls_of_stores(root: Path) -> None:
    assert FileStorage(root).url == f"file://{root}"
    assert FileStorage(root, url="file:///as/given").url == "file:///as/given"
    assert file.STALE_AFTER == 24 * 3600
