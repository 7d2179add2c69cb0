"""A datadir with old data and new data in its staging, and ways to let a swap of the two die at any step."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from guestagent.datadir import blocker, journal, layout, staging, swap
from guestagent.datadir.journal import Phase

Tree = dict[str, str]


ODD = os.fsdecode(b"odd \xff@\n")
OLD: Tree = {
    "ibdata1": "old",
    "aria_log_control": "old",
    "aria_log.00000001": "old",
    "binlog.index": "old",
    "shop/t.ibd": "old",
    "gone/t.ibd": "old",
    ODD: "old",
    "linked": "-> shop",
    ".guestagent-incarnation": "old",
}
NEW: Tree = {
    "ibdata1": "new",
    "aria_log_control": "new",
    "aria_log.00000001": "new",
    "ib_logfile0": "new",
    "shop/t.ibd": "new",
    f"come/{ODD}": "new",
    "gone": "a file where a directory was",
    ".guestagent-incarnation": "new",
}
MYSQL: Tree = {"ibdata1": "new", "mysql.ibd": "new", "shop/t.ibd": "new"}
CASES = {
    "replace": (OLD, NEW),
    "empty target": ({}, NEW),
    "other engine": (OLD, MYSQL),
    "no tablespace": (OLD, {"a": "1"}),
    "odd old": ({"a": "1"}, NEW),
}
REPLACING = [case for case, (old, _) in CASES.items() if old]
SCRAPS = {"README", "blocker", "README.new", "blocker.new", "journal.json.new"}
CALLS = ("rename", "link", "unlink", "mkdir", "rmdir", "fsync", "fchmod", "fchown", "lchown", "open")


class Crash(BaseException):
    """The power went; no handler of Exception sees it."""


def build(top: Path, tree: Tree) -> None:
    for name, content in tree.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_text(content)


def tree(top: Path) -> Tree:
    """Every file and link below ``top``, and every empty directory; without what is no data."""
    found: Tree = {}
    for where, directories, names in os.walk(top):
        inner = Path(where).relative_to(top)
        if inner == Path():
            directories[:] = [name for name in directories if name not in (layout.OURS, "lost+found")]
        for name in [*names, *(each for each in directories if (Path(where) / each).is_symlink())]:
            path = Path(where) / name
            found[str(inner / name)] = f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        if not names and not directories and inner != Path():
            found[f"{inner}/"] = ""
    return found


class Scene:
    """A datadir with old data, and new data that wait in its staging."""

    def __init__(self, top: Path, old: Tree, new: Tree) -> None:
        self.datadir = top / "data"
        self.old, self.new = old, new
        self.datadir.mkdir(parents=True)
        build(self.datadir, old)
        (self.datadir / "lost+found").mkdir()
        self.staging = staging.open_staging(self.datadir)
        self.staging.link(1)
        build(self.staging.base, new)

    def swap(self) -> Path | None:
        return swap.swap(self.datadir, incoming=self.staging.base, keep_as="b7")

    @property
    def ours(self) -> Path:
        return self.datadir / layout.OURS

    def is_old(self) -> bool:
        """All of the old in place; the new, untouched, where it was."""
        return tree(self.datadir) == self.old and tree(self.staging.base) == self.new and not swap.kept(self.datadir)

    def is_new(self) -> bool:
        """All of the new in place; the old, if there was any, complete and kept; the staging gone."""
        kept = [path.name for path in swap.kept(self.datadir)]
        return (
            tree(self.datadir) == self.new
            and [tree(self.ours / name) for name in kept] == ([self.old] if self.old else [])
            and {path.name for path in layout.named(self.datadir, "")} - SCRAPS
            <= {*kept, *(name + layout.STRAYS for name in kept)}
        )

    def no_server_finds_a_mix(self) -> bool:
        """What a server that starts now would see: all of the old, all of the new, or a blocker."""
        now = tree(self.datadir)
        blocked = {name for name in blocker.PIVOTS if blocker.is_one(self.datadir / name)}
        if len(blocked) == len(blocker.PIVOTS):
            return True
        rest = [{name: data for name, data in side.items() if name not in blocked} for side in (self.old, self.new)]
        return {name: data for name, data in now.items() if name not in blocked} in rest and "ibdata1" not in blocked

    def settled(self) -> bool:
        """Neither a journal nor what was made ready for one, and lost+found where it was."""
        return not layout.named(self.datadir, layout.JOURNAL) and (self.datadir / "lost+found").is_dir()


@contextmanager
def at_each_step(act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` before each call in the block that changes something, with its number."""
    numbers = itertools.count()

    def wrapped(original: Callable[..., object], name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if name != "open" or (isinstance(arguments[1], int) and arguments[1] & os.O_CREAT):
                act(next(numbers))
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrapped(getattr(os, name), name))
        yield


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def crashes_at(number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` until its step of that ``number``; whether there was one."""

    def crash(step: int) -> None:
        if step == number:
            raise Crash

    with at_each_step(crash), suppress(Crash):
        work()
        return False
    return True


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """As crashes_at, in a process of its own that SIGKILL ends."""

    def kill(step: int) -> None:
        if step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            with at_each_step(kill):
                work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def scenes(tmp_path: Path, old: Tree = OLD, new: Tree = NEW) -> Iterator[tuple[int, Scene]]:
    """The same scene again and again, each with its number; the caller breaks."""
    number = 0
    while True:
        top = tmp_path / str(number)
        yield number, Scene(top, old, new)
        shutil.rmtree(top)
        number += 1


def swapped(scene: Scene) -> Path:
    kept = scene.swap()
    assert kept
    return kept


def scene_at(top: Path, like: Scene) -> Scene:
    """A copy of a scene, as it is."""
    copy = object.__new__(Scene)
    shutil.rmtree(top / "copy", ignore_errors=True)
    copy.datadir = shutil.copytree(like.datadir, top / "copy" / "data", symlinks=True)
    copy.old, copy.new, copy.staging = like.old, like.new, staging.Staging(copy.datadir, ())
    return copy


def steps_of(phase: Phase, top: Path, sides: tuple[Tree, Tree]) -> list[int]:
    """The numbers of the steps that a swap does in ``phase``."""
    scene = Scene(top, *sides)
    found: list[int] = []

    def note(step: int) -> None:
        noted = journal.read(scene.datadir)
        if noted and noted.phase is phase:
            found.append(step)

    with at_each_step(note):
        scene.swap()
    return found


def crashed_in(phase: Phase, tmp_path: Path, sides: tuple[Tree, Tree] = (OLD, NEW), *, last: bool = True) -> Scene:
    """A scene whose swap was killed at the last (or the first) step of ``phase``."""
    scene = Scene(tmp_path / "crashed", *sides)
    assert crashes_at(steps_of(phase, tmp_path / "dry", sides)[-1 if last else 0], scene.swap)
    return scene
