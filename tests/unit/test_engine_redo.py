"""A dump that no prepare takes, although the tool says that it completed; for tests/unit/."""

from __future__ import annotations

import pytest

from guestagent.errors import ToolError
from tests.fakes.bench import Bench


def test_a_dump_whose_redo_ends_at_its_checkpoint_is_no_backup(bench: Bench) -> None:
    bench.tool(REDO="0")
    with pytest.raises(ToolError, match=r"ended its copy of the redo log at the checkpoint itself, LSN \d+; .*again"):
        bench.backup()
    assert bench.objects() == {}
    bench.tool(REDO="16")
    bench.backup()
