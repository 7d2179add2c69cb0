"""The limit of open files: a tool gets all that there is, and says what it lacks in words that one can act upon."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator

import pytest

from guestagent.errors import ToolError
from guestagent.progress import Watch
from guestagent.streams.limits import MORE_FILES, most_files, remedy, roomy
from guestagent.streams.process import Child

LIMITS = "import os, resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE), os.getpid())"
SOFT = 256


@pytest.fixture
def hard() -> Iterator[int]:
    """The hard limit; the soft one is lower."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in missing else which(name))


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit")
def test_a_child_may_open_as_many_files_as_the_hard_limit_says(hard: int) -> None:
    with Child([sys.executable, "-c", LIMITS]) as child:
        child.finish(Watch())
    assert most_files() == hard
    assert child.tail == (f"{hard} {hard} {child.pid}",)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (SOFT, hard)


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit")
def test_a_child_that_has_them_all_is_started_as_it_is(hard: int) -> None:
    assert roomy(["true", "--now"]) == ["prlimit", f"--nofile={hard}:{hard}", "--", "true", "--now"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert roomy(["true", "--now"]) == ["true", "--now"]


def test_without_prlimit_a_child_has_what_we_have(hard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "prlimit")
    with Child([sys.executable, "-c", LIMITS]) as child:
        child.finish(Watch())
    assert child.tail == (f"{SOFT} {hard} {child.pid}",)
    assert most_files() == SOFT


def test_a_missing_tool_is_still_named(hard: int) -> None:
    with pytest.raises(ToolError, match="no-such-tool is not installed"):
        Child(["no-such-tool"])


@pytest.mark.parametrize(
    "said",
    [
        "2026-11-22 23:54:43 0 [ERROR] InnoDB: Error number 24 means 'Too many open files'",
        "[00] 2026-11-22 23:56:23 Failed to connect to MariaDB server: Can't create UNIX socket (24).",
        "mariabackup: Can't read dir of './shop/' (errno: 24 \"Too many open files\")",
    ],
)
def test_a_tool_without_files_is_told_with_the_remedy(said: str) -> None:
    last = "Failed to validate first page of the file d/t8, error 61"
    script = 'printf "%s\\n" "$@"; exit 1'
    with pytest.raises(ToolError) as failed, Child(["sh", "-c", script, "sh", said, last]) as child:
        child.finish(Watch())
    assert (failed.value.what, failed.value.hint) == (f"sh failed with exit status 1: {last}", MORE_FILES)


def test_any_other_failure_has_no_remedy_of_this_kind() -> None:
    assert remedy(["Failed to validate first page of the file d/t8, error 39", "File size 24", ""]) == ""
