"""Readers of what a stranger may have written, fuzzed one after the other."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile import READERS
from tests.torture.fuzz_readers import with_hypothesis
from tests.torture.soak import soak

PATIENCE = 120
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


@pytest.mark.parametrize("reader", sorted(READERS))
def test_a_reader_refuses_or_reads(reader: str, tmp_path: Path) -> None:
    """atheris follows the branches that are taken; without it, hypothesis mutates samples."""
    seconds = max(1.0, soak("fuzz").seconds / len(READERS))
    if importlib.util.find_spec("atheris") is None:
        assert with_hypothesis(reader, seconds) > 100
        return
    argv = [sys.executable, "-m", "tests.torture.fuzz_readers", reader, str(int(seconds)), str(tmp_path)]
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="replace", timeout=seconds + PATIENCE, check=False, cwd=ROOT
    )
    broken = [path.read_bytes()[:200] for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{broken}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
