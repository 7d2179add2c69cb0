"""Readers of what a stranger may have written, fuzzed for ``GUESTAGENT_TEST_FUZZ_SECONDS`` each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile import READERS
from tests.torture.fuzz_readers import with_hypothesis

SECONDS = float(os.environ.get("GUESTAGENT_TEST_FUZZ_SECONDS") or 20)
PATIENCE = 120
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


@pytest.mark.parametrize("reader", sorted(READERS))
def test_a_reader_refuses_or_reads(reader: str, tmp_path: Path) -> None:
    """atheris follows the branches that are taken; without it, hypothesis mutates samples."""
    if importlib.util.find_spec("atheris") is None:
        assert with_hypothesis(reader, SECONDS) > 100
        return
    argv = [sys.executable, "-m", "tests.torture.fuzz_readers", reader, str(int(SECONDS)), str(tmp_path)]
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="replace", timeout=SECONDS + PATIENCE, check=False, cwd=ROOT
    )
    broken = [path.read_bytes()[:200] for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{broken}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
