"""Remove each guard alone and see which test notices; exit status 1 if none does.

::

    python -m tests.mutation [--guard NAME]... [--jobs N] [--list] [--json FILE] [--table FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from tests.mutation.guards import ROOT, Guard, Rotten, guards
from tests.mutation.table import drawn
from tests.mutation.trial import Copy, Outcome, Result


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    wanted = _arguments(argv)
    everything = guards()
    chosen = [guard for guard in everything if not wanted.guard or guard.name in wanted.guard]
    if unknown := set(wanted.guard) - {guard.name for guard in chosen}:
        raise Rotten(f"no guard has the name {', '.join(sorted(unknown))}")
    for guard in everything:
        guard.without((ROOT / guard.file).read_text(encoding="utf-8"))
    if wanted.list:
        print("\n".join(guard.name for guard in chosen))
        return 0
    results = _tried(chosen, wanted.jobs)
    known = _with_known(everything, results, wanted.json)
    if wanted.json:
        wanted.json.write_text(json.dumps([_plain(result) for result in known], indent=1) + "\n", encoding="utf-8")
    if wanted.table:
        wanted.table.write_text(drawn(everything, known), encoding="utf-8")
    killed = sum(result.outcome is Outcome.KILLED for result in results)
    print(f"{killed} of {len(chosen)} guards are missed when they are gone")
    return 0 if killed == len(chosen) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description="Which test notices that a guard is gone?")
    parser.add_argument("--guard", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"guards at once, each in a copy ({jobs})")
    parser.add_argument("--list", action="store_true", help="only list the guards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there; of other guards, keep them")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the page of the documentation there")
    return parser.parse_args(argv)


def _tried(chosen: Sequence[Guard], jobs: int) -> list[Result]:
    """Every guard's trial; and whoever noticed one must have nothing to say with all of them in their places."""
    with _copies(jobs) as free, ThreadPoolExecutor(jobs) as pool:

        def trial(guard: Guard) -> Result:
            copy = free.get()
            try:
                return _told(copy.trial(guard))
            finally:
                free.put(copy)

        results = list(pool.map(trial, chosen))
        nervous = _nervous(free.get(), sorted({result.by for result in results if result.outcome is Outcome.KILLED}))
    return [replace(one, outcome=Outcome.BROKEN) if one.by in nervous else one for one in results]


@contextmanager
def _copies(count: int) -> Iterator[SimpleQueue[Copy]]:
    """So many copies of the tree."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as above:
        free: SimpleQueue[Copy] = SimpleQueue()
        for number in range(count):
            free.put(Copy(Path(above, str(number))))
        yield free


def _nervous(copy: Copy, killers: list[str]) -> set[str]:
    """Those tests that fail although no guard is missing, by themselves too: the machine may have been busy."""
    found = set()
    while killers:
        together = copy.run("all guards in their places", killers)
        if together.outcome is Outcome.SURVIVED:
            break
        if not together.by:
            raise Rotten(f"the tests that noticed do not run:\n{together.words}")
        if copy.run("the same", [together.by]).outcome is not Outcome.SURVIVED:
            print(f"fails although no guard is missing: {together.by}", flush=True)
            found.add(together.by)
        killers = [killer for killer in killers if killer != together.by]
    return found


def _told(result: Result) -> Result:
    print(f"{result.outcome.value:8} {result.seconds:6.1f} s  {result.guard}: {result.by}", flush=True)
    if result.outcome is Outcome.BROKEN:
        print(result.words, flush=True)
    return result


def _with_known(everything: Sequence[Guard], results: Sequence[Result], file: Path | None) -> list[Result]:
    """These results, and those of other guards that the file has of an earlier run, in the order of the list."""
    known = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else []
    by_name = {one["guard"]: Result(**one | {"outcome": Outcome(one["outcome"]), "words": ""}) for one in known}
    by_name |= {result.guard: result for result in results}
    return [by_name[guard.name] for guard in everything if guard.name in by_name]


def _plain(result: Result) -> dict[str, object]:
    return {"guard": result.guard, "outcome": result.outcome.value, "by": result.by, "seconds": result.seconds}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Rotten as error:
        sys.exit(f"{error}")
