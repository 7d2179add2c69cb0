"""Cases of faults in processes, played one after the other.

As a program, to play a seed's cases, or one case again:

    python -m tests.torture.process_run SEED FROM TO
    python -m tests.torture.process_run case 'replace rpc s3 sealed tool:kill@prepare+0.120'
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.torture.process_blows import small_disk
from tests.torture.process_cases import Case, Victim, make_case
from tests.torture.process_judge import Verdict
from tests.torture.process_scene import Scene, scene
from tests.torture.soak import Record, Soak

DISKS = (Victim.STORE, Victim.STATE, Victim.DATA)


class Stage:
    """The scene that cases need; one at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._scene: tuple[tuple[str, bool], Scene] | None = None

    def play(self, case: Case) -> Verdict:
        """Play one case; what a scene dies of is wrong, too, and after anything wrong the next case gets a new one."""
        try:
            verdict = self._set(case.store, case.sealed).play(case)
            if verdict.wrong:
                self.close()
            return verdict
        except Exception as error:
            return Verdict(case, "broken", wrong=[f"the scene broke: {error!r}", *self._given_up()])

    def close(self) -> None:
        """End the scene."""
        self._scene = None
        self._stack.close()

    def _given_up(self) -> list[str]:
        try:
            self.close()
        except Exception as error:
            return [f"and does not end: {error!r}"]
        return []

    def _set(self, store: str, sealed: bool) -> Scene:
        if self._scene is None or self._scene[0] != (store, sealed):
            self.close()
            self._scene = (store, sealed), self._stack.enter_context(scene(store, sealed=sealed))
        return self._scene[1]


@contextmanager
def stage() -> Iterator[Stage]:
    """A stage; libraries that tell of each outage are hushed."""
    for name in ("werkzeug", "oslo", "oslo_messaging", "amqp", "kombu", "oslo.messaging"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    made = Stage()
    try:
        yield made
    finally:
        made.close()


def impossible() -> Collection[Victim]:
    """Whom nobody can strike here: disks are filled where one may mount."""
    with tempfile.TemporaryDirectory() as top, small_disk(Path(top) / "disk", "1m") as mounted:
        return () if mounted else DISKS


def versions() -> dict[str, str]:
    """What the cases run on."""
    said = subprocess.run(["mariabackup", "--version"], capture_output=True, text=True, check=True, timeout=30)
    return {
        "tool": (said.stderr + said.stdout).strip().splitlines()[-1],
        "python": sys.version.split()[0],
        "kernel": os.uname().release,
    }


def run(cases: Iterable[Case], told: Callable[[Verdict], object]) -> list[Verdict]:
    """Play cases in their order."""
    found = []
    with stage() as made:
        for case in cases:
            found.append(made.play(case))
            told(found[-1])
    return found


def soaked(soak: Soak, *, share: int, shares: int) -> Record:
    """The record of one of several processes that share a soak."""
    but, began = impossible(), time.monotonic()
    record = Record(soak.part, soak.seed, about=versions())
    if but:
        record.about["not here"] = f"nobody may mount, so no disk is full: {', '.join(one.value for one in but)}"

    def told(verdict: Verdict) -> None:
        record.runs, record.faulted = record.runs + 1, record.faulted + verdict.struck
        record.count(verdict.case.row, *verdict.columns)
        record.wrong += [str(verdict)] if verdict.wrong else []

    run((make_case(soak.seed, number, but=but) for number in soak.numbers(first=share, step=shares)), told)
    record.seconds = time.monotonic() - began
    return record


def main(*words: str) -> int:
    """Play what the words say; gives 1 if anything was wrong."""
    if words[0] == "case":
        cases = [Case.parse(line) for line in words[1:]]
    else:
        but = impossible()
        cases = [make_case(words[0], number, but=but) for number in range(int(words[1]), int(words[2]))]
    found = run(sorted(cases, key=lambda case: (case.store, case.sealed)), lambda verdict: print(verdict, flush=True))
    wrong = sum(bool(verdict.wrong) for verdict in found)
    print(f"{len(found)} runs, {sum(verdict.struck for verdict in found)} faulted, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
