"""A backup that is damaged for good, by the real commands: it stands in the way, is named, and goes by its own name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from guestagent.manifest import Backup
from tests.servers.guest import Guest

REFUSED, NOT_FOUND, CORRUPT = 3, 4, 6
"""Exit statuses."""


def folder(guest: Guest, backup: Backup) -> Path:
    return guest.place / "store" / guest.name / backup.id


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """It failed with that status, and its last line says so."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    told = done.stderr.splitlines()[-1]
    for word in words:
        assert word in told, done.stderr


def listed(guest: Guest) -> list[str]:
    return [row["id"] for row in guest.json("backup", "list")]


def test_a_damaged_backup_stands_in_the_way_until_it_is_deleted_by_its_name(guest: Guest) -> None:
    full = guest.back_up()
    lost = guest.back_up(full)
    tip = guest.back_up(lost)
    flip(folder(guest, lost) / "manifest.json")
    remedy = f"`guestagent backup delete {lost.id} --damaged`"

    refused(guest.command("backup", "delete", full.id), REFUSED, lost.id, f"may stand on {full.id}", remedy)
    refused(guest.command("backup", "delete", lost.id), CORRUPT, lost.id, remedy)
    refused(guest.command("backup", "delete", full.id, "--damaged"), REFUSED, full.id, "is not damaged")
    refused(guest.command("backup", "delete", lost.id, "--damaged"), REFUSED, f"{tip.id} among them", "put its whole")
    assert listed(guest) == [full.id, tip.id]

    assert [row["id"] for row in guest.json("backup", "delete", tip.id)] == [tip.id]
    (shown,) = guest.json("backup", "delete", lost.id, "--damaged", "--dry-run")
    assert folder(guest, lost).exists()
    done = guest.command("backup", "delete", lost.id, "--damaged", "-f", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [shown]
    assert (shown["id"], shown["status"], shown["parent_id"]) == (lost.id, "FAILED", None)
    assert f"{lost.id}/manifest.json" in shown["note"]
    assert "bytes of a damaged backup are lost for good" in done.stderr
    refused(guest.command("backup", "delete", lost.id, "--damaged"), NOT_FOUND, lost.id)

    assert [path.name for path in (guest.place / "store" / guest.name).iterdir()] == [full.id]
    assert guest.json("backup", "verify", full.id)[0]["verified"] == "whole"
    assert [row["id"] for row in guest.json("backup", "delete", full.id)] == [full.id]
