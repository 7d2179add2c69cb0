"""The swap's journal: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import journal, layout
from guestagent.datadir.journal import Journal, Phase
from guestagent.errors import Corrupt

GOOD = Journal(
    phase=Phase.OUT,
    incoming=".restore/base",
    outgoing=".old-2026-11-22T14:00:00Z",
    old=frozenset({"ibdata1", os.fsdecode(b"\xff\xfe \n"), "lost", "é"}),
    new=frozenset({"ibdata1", "..."}),
)


@pytest.mark.parametrize("phase", Phase)
def test_a_journal_survives_its_file(tmp_path: Path, phase: Phase) -> None:
    assert journal.read(tmp_path) is None
    (tmp_path / layout.OURS).mkdir()
    assert journal.read(tmp_path) is None
    for swap in (GOOD.at(phase), Journal(phase, ".old-b7", ".trash-b7", frozenset(), frozenset())):
        journal.write(tmp_path, swap)
        assert journal.read(tmp_path) == swap
    journal.remove(tmp_path)
    assert journal.read(tmp_path) is None
    assert os.listdir(tmp_path / layout.OURS) == []


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(GOOD.to_bytes()), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"7",
        b"[" * 100_000,
        changed(format=2),
        changed(phase="sideways"),
        changed(incoming=""),
        changed(incoming=None),
        changed(incoming="/etc"),
        changed(incoming=".restore/base/../../.."),
        changed(incoming=".trash-b7"),
        changed(outgoing=""),
        changed(outgoing=".restore/base"),
        changed(outgoing=".old-"),
        changed(outgoing=".old-a/b"),
        changed(outgoing=".old-a\n"),
        changed(old="ibdata1"),
        changed(old=["/etc"]),
        changed(new=[".."]),
        changed(new=["."]),
        changed(new=[""]),
        changed(new=[layout.OURS]),
        changed(new=["a\0b"]),
        changed(new=[7]),
        changed(new=None),
    ],
)
def test_anything_else_is_corrupt(tmp_path: Path, data: bytes) -> None:
    (tmp_path / layout.OURS).mkdir()
    (tmp_path / layout.OURS / layout.JOURNAL).write_bytes(data)
    with pytest.raises(Corrupt, match="not a swap's journal") as caught:
        journal.read(tmp_path)
    assert "look at this one by hand" in caught.value.hint


def test_a_phase_is_noted_with_what_was_made_ready_for_it(tmp_path: Path) -> None:
    ours = tmp_path / layout.OURS
    ours.mkdir()
    journal.begin(tmp_path, GOOD.at(Phase.BACK))
    assert journal.read(tmp_path) == GOOD.at(Phase.BACK)
    for phase in (Phase.OUT, Phase.BACK):
        ready = ours / f"{layout.READY}{phase.value}"
        inode = ready.stat().st_ino
        journal.write(tmp_path, GOOD.at(phase))
        assert journal.read(tmp_path) == GOOD.at(phase)
        assert (ours / layout.JOURNAL).stat().st_ino == inode
        assert not ready.exists()
    journal.remove(tmp_path)
    assert os.listdir(ours) == []


@pytest.mark.parametrize("left", ["other", "half", "directory", "link", "pipe", "none"])
def test_nothing_but_what_was_made_ready_for_this_swap_is_taken(tmp_path: Path, left: str) -> None:
    ours = tmp_path / layout.OURS
    ours.mkdir()
    ready = ours / f"{layout.READY}{GOOD.phase.value}"
    (tmp_path / "far").write_bytes(GOOD.to_bytes())
    match left:
        case "other":
            ready.write_bytes(Journal(GOOD.phase, ".old-b7", ".trash-b7", frozenset(), frozenset()).to_bytes())
        case "half":
            ready.write_bytes(GOOD.to_bytes()[:-1])
        case "directory":
            ready.mkdir()
        case "link":
            ready.symlink_to(tmp_path / "far")
        case "pipe":
            os.mkfifo(ready)
    journal.write(tmp_path, GOOD)
    assert journal.read(tmp_path) == GOOD
    assert os.path.lexists(ready) is (left != "none")
