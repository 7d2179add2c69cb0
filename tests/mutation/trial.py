"""A trial: a copy of the tree without one guard, and the tests that should notice."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from py_compile import PycInvalidationMode

from tests.mutation.guards import ROOT, Guard
from tests.mutation.witness import TREE

LIMIT = 300.0
"""Seconds for the tests of one guard."""
TEST_LIMIT = 60
"""Seconds for one test: some guards are there so that nothing hangs."""

_NOT_COPIED = (".git", ".venv", ".tox", ".*cache", ".hypothesis", ".coverage*", "__pycache__", "_build", "*.egg-info")
_FAILED = re.compile(r"^(?:FAILED|ERROR) tests/(\S+?::\w+)", re.MULTILINE)
_TAIL = 25
_TESTS_FAILED = 1


class Outcome(Enum):
    """What came of a trial."""

    KILLED = "killed"
    """A test failed: the suite notices that the guard is gone."""
    SURVIVED = "survived"
    """All tests passed."""
    BROKEN = "broken"
    """Nothing is known: no test ran to its end, or not against the copy."""


@dataclass(frozen=True)
class Result:
    """How one trial went; ``by`` is the first test that failed, ``words`` the end of what pytest said."""

    guard: str
    outcome: Outcome
    by: str
    seconds: float
    words: str


class Copy:
    """A copy of the tree, in which one guard at a time is missing."""

    def __init__(self, above: Path) -> None:
        self._tree = (above / "tree").resolve()
        self._scratch = above / "t"
        shutil.copytree(ROOT, self._tree, ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=True)
        # By its content, since a mutant may be as old, by the second, and as long as its source.
        by_content = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self._tree / "guestagent", quiet=1, invalidation_mode=by_content)

    def trial(self, guard: Guard) -> Result:
        """Remove a guard, run its tests, and put it back."""
        path = self._tree / guard.file
        source = path.read_text(encoding="utf-8")
        path.write_text(guard.without(source), encoding="utf-8")
        try:
            return self.run(guard.name, guard.tests)
        finally:
            path.write_text(source, encoding="utf-8")

    def run(self, name: str, tests: Sequence[str]) -> Result:
        """Run tests as the tree is now."""
        began = time.monotonic()
        code, words = _bounded(self._argv(tests), cwd=self._tree)
        by = _FAILED.search(words)
        tail = "\n".join(words.splitlines()[-_TAIL:])
        seconds = round(time.monotonic() - began, 1)
        return Result(name, _outcome(code, failed=by is not None), by[1] if by else "", seconds, tail)

    def _argv(self, tests: Sequence[str]) -> list[str]:
        plugins = ("no:cacheprovider", "no:xdist", "no:cov", "tests.mutation.witness")
        return [
            *(sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", f"--timeout={TEST_LIMIT}"),
            *(word for plugin in plugins for word in ("-p", plugin)),
            f"--basetemp={self._scratch}",
            *(f"tests/{test}" for test in tests),
        ]


def _outcome(code: int, *, failed: bool) -> Outcome:
    if code == 0:
        return Outcome.SURVIVED
    return Outcome.KILLED if code == _TESTS_FAILED and failed else Outcome.BROKEN


def _bounded(argv: Sequence[str], *, cwd: Path) -> tuple[int, str]:
    """The exit status and the words of a command that ends in time; one that does not is a failure without tests."""
    environment = os.environ | {"PYTHONPATH": str(cwd), "PYTHONDONTWRITEBYTECODE": "1", TREE: str(cwd)}
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            words, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return -1, f"no end within {LIMIT:g} s"
    return process.returncode, words
