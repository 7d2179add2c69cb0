"""Dumps that no prepare takes, although the tool says that it completed, and their neighbours; for tests/unit/."""

from __future__ import annotations

import pytest

from guestagent.errors import ToolError
from tests.fakes.bench import Bench

TOO_SHORT = r"ended its copy of the redo log {} bytes beyond the checkpoint, LSN \d+; .* with fewer than 16: .*again"


@pytest.mark.parametrize("beyond", ["0", "1", "15"])
def test_an_incremental_whose_redo_ends_too_near_its_checkpoint_is_no_backup(bench: Bench, beyond: str) -> None:
    parent = bench.backup()
    before = bench.objects()
    bench.tool(REDO=beyond)
    with pytest.raises(ToolError, match=TOO_SHORT.format(beyond)):
        bench.backup(parent)
    assert bench.objects() == before
    bench.tool(REDO="16")
    bench.backup(parent)


@pytest.mark.parametrize("beyond", ["0", "15"])
def test_a_full_may_end_at_its_checkpoint(bench: Bench, beyond: str) -> None:
    bench.tool(REDO=beyond)
    lsn = bench.backup().manifest.lsn
    assert lsn.last - lsn.end == int(beyond)
    assert len(bench.runs("backup")) == 1
