"""What stands at a target: its refusals, sizes, mounts, locks and owners."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestagent.datadir import durable, layout, place
from guestagent.errors import ConfigError, GuestagentError, Refused, UsageError
from tests.processes import eventually

HOLD = """
import fcntl, sys
files = [open(name, "r+b") for name in sys.argv[1:]]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""
NOBODY = pwd.getpwnam("nobody")
ME = pwd.getpwuid(os.geteuid()).pw_name


@contextmanager
def lock_held(*files: Path) -> Iterator[None]:
    """Another process holds the files as a server does."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, files)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield
        child.stdin.close()
        child.wait(timeout=10)


def datadir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    (path / "shop").mkdir(parents=True)
    (path / "shop" / "t.ibd").write_bytes(b"x" * 1000)
    (path / "ibdata1").write_bytes(b"y" * 500)
    (path / "lost+found").mkdir()
    (path / "lost+found" / "z").write_bytes(b"z" * 7)
    return path


def test_a_datadir_is_described(tmp_path: Path) -> None:
    path = datadir(tmp_path)
    found = place.look(path)
    assert found.path == path
    assert found.exists
    assert not found.is_mount
    assert found.entries == {"shop", "ibdata1"}
    assert found.size == 1500
    assert found.leftover == 0
    assert (found.uid, found.gid) == (path.stat().st_uid, path.stat().st_gid)
    assert not found.server_running
    assert found.looks_like_datadir


def test_free_space_is_what_others_than_root_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        f_bavail, f_bfree, f_frsize, f_bsize = 3, 5, 4096, 1

    monkeypatch.setattr(os, "statvfs", lambda path: Space if path == tmp_path else None)
    assert place.look(tmp_path / "not" / "yet").free == 3 * 4096


def test_ours_is_no_entry_and_what_a_dead_restore_left_counts_as_leftover(tmp_path: Path) -> None:
    path = datadir(tmp_path)
    for name, size in ((".restore/base", 10), (".trash-x", 20), (".old-b", 400)):
        (path / layout.OURS / name).mkdir(parents=True)
        (path / layout.OURS / name / "f").write_bytes(b"x" * size)
    found = place.look(path)
    assert found.entries == {"shop", "ibdata1"}
    assert (found.size, found.leftover) == (1500, 30)


def test_a_target_that_is_not_there_is_seen_through_its_nearest_parent(tmp_path: Path) -> None:
    found = place.look(tmp_path / "a" / "b")
    assert found.path == tmp_path / "a" / "b"
    assert not found.exists
    assert (found.entries, found.size, found.leftover) == (frozenset(), 0, 0)
    assert (found.uid, found.gid) == (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    assert found.free > 0
    assert not found.looks_like_datadir


def test_links_are_resolved_dangling_ones_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    assert place.look(tmp_path / "link").path == tmp_path / "real"
    (tmp_path / "real").mkdir()
    assert place.look(tmp_path / "link").path == tmp_path / "real"


def test_a_directory_of_something_else_does_not_look_like_a_datadir(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert not place.look(tmp_path).looks_like_datadir


def test_what_an_installation_leaves_is_pristine(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    assert place.look(path).pristine
    for name in ("mysql", "performance_schema", "sys", "lost+found", "#innodb_redo", "#innodb_temp"):
        (path / name).mkdir()
    for name in ("ibdata1", "aria_log_control", "ib_logfile0", "debian-10.11.flag", "undo001"):
        (path / name).write_bytes(b"x")
    assert place.look(path).pristine


def test_a_database_of_a_users_is_not_even_an_empty_one(tmp_path: Path) -> None:
    path = datadir(tmp_path)
    assert not place.look(path).pristine
    shutil.rmtree(path / "shop")
    assert place.look(path).pristine
    (path / "empty").mkdir()
    assert not place.look(path).pristine
    (path / "empty").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (path / "linked").symlink_to(tmp_path / "elsewhere")
    assert not place.look(path).pristine


def test_what_can_never_be_a_target_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "root").symlink_to("/")
    for path in ("loop", "loop/x", "file", "file/x", "root"):
        with pytest.raises(UsageError):
            place.look(tmp_path / path)
    for path in ("/", "data", "./data", ""):
        with pytest.raises(UsageError):
            place.look(Path(path))


def test_a_path_that_we_may_not_look_at_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os.path, "realpath", denied)
    with pytest.raises(Refused, match="may not look"):
        place.look(tmp_path)


@pytest.mark.parametrize("name", place.SERVER_FILES)
def test_a_running_server_is_noticed_by_its_locks_and_not_disturbed(tmp_path: Path, name: str) -> None:
    path = datadir(tmp_path)
    (path / name).write_bytes(b"control")
    with lock_held(path / name):
        for _ in range(3):
            assert place.look(path).server_running
    assert not place.look(path).server_running
    assert (path / name).read_bytes() == b"control"
    assert not (path / ({*place.SERVER_FILES} - {name, "ibdata1"} or {"x"}).pop()).exists()


def test_asking_takes_no_lock(tmp_path: Path) -> None:
    """A server that starts while somebody looks must not be refused its own file."""
    path = datadir(tmp_path)
    until = time.monotonic() + 0.3
    with lock_held(path / "ibdata1"):
        pass
    while time.monotonic() < until:
        place.server_running(path)
    with lock_held(path / "ibdata1"):
        assert place.server_running(path)


def test_a_link_to_a_locked_file_counts_and_a_dangling_one_does_not(tmp_path: Path) -> None:
    path = datadir(tmp_path)
    (path / "ibdata1").rename(tmp_path / "elsewhere")
    (path / "ibdata1").symlink_to(tmp_path / "elsewhere")
    with lock_held(tmp_path / "elsewhere"):
        assert place.server_running(path)
    (tmp_path / "elsewhere").unlink()
    assert not place.server_running(path)


def test_a_file_that_we_may_not_open_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = datadir(tmp_path)

    def denied(name: object, *_: object) -> int:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(Refused, match="run as root or as the server's user"):
        place.server_running(path)


def test_a_mount_inside_the_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "the data"
    path.mkdir()
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(place, "_MOUNTS", mounts)
    place.look(path)
    escaped = str(path).replace(" ", "\\040")
    line = "36 25 0:29 / {} rw,relatime shared:5 - tmpfs tmpfs rw\n"
    mounts.write_text(line.format(escaped) + line.format(escaped + "-2/x") + line.format("/"))
    place.look(path)
    mounts.write_text(line.format("/") + line.format(f"{escaped}/binlog/deep"))
    with pytest.raises(Refused, match="the data/binlog/deep is mounted inside"):
        place.look(path)


def test_mounts_of_this_machine_can_be_read() -> None:
    assert Path("/") in place._mounts()


def test_sizes_follow_no_link_and_forgive_what_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = datadir(tmp_path)
    (path / "shop" / "link").symlink_to(path / "ibdata1")
    link = os.lstat(path / "shop" / "link").st_size
    assert place.tree_size(path) == 1507 + link
    assert place.tree_size(path / "ibdata1") == 500
    assert place.tree_size(path / "none") == 0
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda where: [*listed(where), "gone"])
    assert place.tree_size(path) == 1507 + link


def test_a_tree_of_mine_gets_the_modes_of_a_server_and_no_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    outside.chmod(0o604)
    path = datadir(tmp_path)
    (path / "shop" / "link").symlink_to(outside)
    (path / "shop" / "to-directory").symlink_to(tmp_path)
    (path / "shop").chmod(0o755)
    os.mkfifo(path / "pipe", 0o600)
    place.own(path, user=ME)
    modes = {item: stat.S_IMODE(os.lstat(item).st_mode) for item in (path, *path.rglob("*")) if not item.is_symlink()}
    assert modes.pop(path / "pipe") == 0o600
    assert {modes.pop(item) for item in (path, path / "shop", path / "lost+found")} == {0o700}
    assert set(modes.values()) == {0o660}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o604


def test_who_owns_it_already_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = datadir(tmp_path)
    place.own(path, user=ME)
    for name in ("fchown", "fchmod"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("touched"))
    place.own(path, user=ME)


def test_root_gives_user_and_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = datadir(tmp_path)
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        os, "fchown", lambda handle, *owner: given.update({os.readlink(f"/proc/self/fd/{handle}"): owner})
    )
    place.own(path, user="nobody")
    assert set(given) == {str(path), *(str(item) for item in path.rglob("*"))}
    assert set(given.values()) == {(NOBODY.pw_uid, NOBODY.pw_gid)}


def test_who_is_not_root_keeps_groups_and_may_not_give_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = datadir(tmp_path)

    def denied(handle: int, uid: int, gid: int) -> None:
        assert (uid, gid) == (NOBODY.pw_uid, os.fstat(handle).st_gid)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "fchown", denied)
    with pytest.raises(Refused, match="to nobody: operation not permitted; run as root"):
        place.own(path, user="nobody")


def test_an_unknown_user_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no user 'nobody-here'"):
        place.own(tmp_path, user="nobody-here")


def test_every_file_and_directory_is_made_durable_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = datadir(tmp_path)
    (path / "shop" / "link").symlink_to(path)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    place.make_durable(path)
    expected = [path, *(item for item in path.rglob("*") if not item.is_symlink())]
    assert sorted(synced) == sorted(map(str, expected))


def test_thousands_of_files_are_made_durable_with_a_few_open_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        (tmp_path / f"t{number}.ibd").touch()
    most = 0
    synced: list[int] = []

    def slow(handle: int) -> None:
        nonlocal most
        synced.append(handle)
        most = max(most, len(os.listdir("/proc/self/fd")))

    monkeypatch.setattr(os, "fsync", slow)
    before = len(os.listdir("/proc/self/fd"))
    place.make_durable(tmp_path)
    assert len(synced) == 201
    assert most < before + 100


def test_a_tree_that_is_not_there_is_an_error_and_leaks_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GuestagentError, match="no such file"):
        place.make_durable(tmp_path / "none")
    with pytest.raises(GuestagentError, match="no such file"):
        place.own(tmp_path / "none", user=ME)
    path = datadir(tmp_path)

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(GuestagentError, match="failing disk"):
        place.make_durable(path)
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_directory_that_vanishes_under_the_walk_is_an_error(tmp_path: Path) -> None:
    path = datadir(tmp_path)
    walk = durable.opened(path)
    next(walk)
    shutil.rmtree(path / "shop")
    with pytest.raises(FileNotFoundError):
        list(walk)


def test_only_root_gives_a_path_or_a_descriptor_the_owner_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "lchown", lambda *call: calls.append(call))
    monkeypatch.setattr(os, "fchown", lambda *call: calls.append(call))
    owner = (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    durable.give(tmp_path / "x", tmp_path)
    assert calls == []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    durable.give(tmp_path / "x", tmp_path)
    durable.give(99, tmp_path)
    assert calls == [(tmp_path / "x", *owner), (99, *owner)]


def test_messages_survive_names_that_are_not_text() -> None:
    assert durable.shown(Path(os.fsdecode(b"/a\xff"))) == "/a\\xff"
    with (
        pytest.raises(GuestagentError, match=r"cannot try: no space left.* \(/a\\xff\); make room"),
        durable.explained("try"),
    ):
        raise OSError(28, "No space left on device", b"/a\xff")
    with pytest.raises(GuestagentError, match=r"^cannot try: odd$"), durable.explained("try"):
        raise OSError("odd")
