"""Cases of the matrix, played one after the other.

As a program, to play a seed's cases, or one case again:

    python -m tests.torture.matrix_run SEED FROM TO [DIRECTORY FOR THE RECORD]
    python -m tests.torture.matrix_run case 'full s3 plain rpc put-manifest@1*1:lost-ack'
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.faults.gate import FaultGate
from tests.servers.moto_s3 import moto_s3
from tests.torture.matrix_cases import Case, make_case
from tests.torture.matrix_scene import Scene, scene
from tests.torture.matrix_stores import STALL, Bucket, Directory
from tests.torture.matrix_verdict import Verdict, count
from tests.torture.soak import Record, Soak

BLOCK = 48
"""Cases that are put into the order of their scenes: a scene costs as much as some cases."""
SHARED_MEMORY = Path("/dev/shm")


class Stage:
    """The scenes that cases need, made when the first one does; a case of one does not see those of another."""

    def __init__(self, top: Path, stack: ExitStack) -> None:
        self._top, self._stack = top, stack
        self._scenes: dict[tuple[str, bool], tuple[ExitStack, Scene]] = {}
        self._gate: FaultGate | None = None

    def play(self, case: Case) -> Verdict:
        """Play one case; after one that nobody foresaw a new scene is made."""
        try:
            return self._scene(case.store, case.sealed).play(case)
        except Exception as error:
            self._close((case.store, case.sealed))
            return Verdict(str(case), ended="not judged", wrong=[f"{type(error).__name__} in the test itself: {error}"])

    def _close(self, key: tuple[str, bool]) -> None:
        if key in self._scenes:
            self._scenes.pop(key)[0].close()

    def _scene(self, store: str, sealed: bool) -> Scene:
        """The scene is the only one that is open: two of them would patch the same things."""
        for other in [key for key in self._scenes if key != (store, sealed)]:
            self._close(other)
        if (store, sealed) not in self._scenes:
            own = self._stack.enter_context(ExitStack())
            top = Path(tempfile.mkdtemp(prefix=f"{store}-", dir=self._top))
            own.callback(shutil.rmtree, top, ignore_errors=True)
            place = Directory(top / "store") if store == "file" else Bucket(self._gated(), f"{top.name}")
            self._scenes[store, sealed] = own, own.enter_context(scene(top, place, sealed=sealed))
        return self._scenes[store, sealed][1]

    def _gated(self) -> FaultGate:
        if self._gate is None:
            port = urlsplit(self._stack.enter_context(moto_s3())).port
            assert port
            self._gate = self._stack.enter_context(FaultGate(port, stall=STALL))
        return self._gate


@contextmanager
def stage() -> Iterator[Stage]:
    """A stage, in memory where that can be."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's, which tells of every request
    above = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ga-matrix-", dir=above) as top, ExitStack() as stack:
        yield Stage(Path(top), stack)


def soaked(soak: Soak, *, share: int, shares: int) -> Record:
    """Play every ``shares``-th case of a seed until the time is over, those of one scene together; counts them."""
    record, began = Record(soak.part, soak.seed), time.monotonic()
    numbers = soak.numbers(first=share, step=shares)
    with stage() as made:
        turn = share
        while block := list(islice(numbers, BLOCK)):
            for case in _together((make_case(soak.seed, number) for number in block), turn):
                if record.runs == 0 or time.monotonic() < soak.until:
                    count(record, made.play(case))
            turn += 1
    record.seconds = time.monotonic() - began
    return record


def _together(cases: Iterable[Case], turn: int = 0) -> list[Case]:
    """Cases in the order of their scenes; which scene comes first depends on whose turn it is."""
    found = list(cases)
    scenes = sorted({_scene_of(case) for case in found})
    begin = turn % len(scenes) if scenes else 0
    order = scenes[begin:] + scenes[:begin]
    return sorted(found, key=lambda case: order.index(_scene_of(case)))


def _scene_of(case: Case) -> tuple[str, bool]:
    return case.store, case.sealed


def run(cases: Iterable[Case], told: Callable[[Verdict], object] = lambda _: None) -> list[Verdict]:
    """Play cases, those of one scene together."""
    found = []
    with stage() as made:
        for case in _together(cases):
            found.append(made.play(case))
            told(found[-1])
    return found


def main(*words: str) -> int:
    """Play what the words say; gives 1 if anything was wrong."""
    if words[0] == "case":
        lines = [Case.parse(line) for line in words[1:]]
        return int(any(verdict.wrong for verdict in run(lines, lambda verdict: print(verdict, flush=True))))
    seed, first, last = int(words[0]), int(words[1]), int(words[2])
    record, began = Record("matrix", seed), time.monotonic()

    def told(verdict: Verdict) -> None:
        count(record, verdict)
        if verdict.wrong:
            print(verdict, flush=True)

    run((make_case(seed, number) for number in range(first, last)), told)
    record.seconds = time.monotonic() - began
    for directory in words[3:]:
        record.write(Path(directory))
    print(record)
    return int(bool(record.wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
