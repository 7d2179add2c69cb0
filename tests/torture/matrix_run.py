"""Cases of the matrix, played one after the other.

As a program, to play a seed's cases, or one case again:

    python -m tests.torture.matrix_run SEED FROM TO [SUMMARY.json]
    python -m tests.torture.matrix_run case 'full s3 plain put-manifest@1*1:lost-ack'
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.faults.gate import FaultGate
from tests.servers.moto_s3 import moto_s3
from tests.torture.matrix_cases import Case, make_case
from tests.torture.matrix_scene import Scene, scene
from tests.torture.matrix_stores import STALL, Bucket, Directory
from tests.torture.matrix_verdict import Verdict, summary

SHARED_MEMORY = Path("/dev/shm")


class Stage:
    """The scenes that cases need, made when the first one does; a case of one does not see those of another."""

    def __init__(self, top: Path, stack: ExitStack) -> None:
        self._top, self._stack = top, stack
        self._scenes: dict[tuple[str, bool], tuple[ExitStack, Scene]] = {}
        self._gate: FaultGate | None = None

    def play(self, case: Case) -> Verdict:
        """Play one case."""
        return self._scene(case.store, case.sealed).play(case)

    def _scene(self, store: str, sealed: bool) -> Scene:
        """The scene is the only one that is open: two of them would patch the same things."""
        for other in [key for key in self._scenes if key != (store, sealed)]:
            self._scenes.pop(other)[0].close()
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


def run(cases: Iterable[Case], told: Callable[[Verdict], object] = lambda _: None) -> list[Verdict]:
    """Play cases, those of one scene together."""
    found = []
    with stage() as made:
        for case in sorted(cases, key=lambda case: (case.store, case.sealed)):
            verdict = made.play(case)
            told(verdict)
            found.append(verdict)
    return found


def main(*words: str) -> int:
    """Play what the words say; gives 1 if anything was wrong."""

    def told(verdict: Verdict) -> None:
        if verdict.wrong or words[0] == "case":
            print(verdict, flush=True)

    if words[0] == "case":
        return int(any(verdict.wrong for verdict in run([Case.parse(line) for line in words[1:]], told)))
    seed, first, last = words[0], int(words[1]), int(words[2])
    found = run((make_case(seed, number) for number in range(first, last)), told)
    made = summary(seed, found, cases=[first, last])
    for path in words[3:]:
        Path(path).write_text(json.dumps(made, indent=1))
    print({name: made[name] for name in ("runs", "faulted", "faults", "seconds")}, len(made["wrong"]), "wrong")
    return int(bool(made["wrong"]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
