"""Chains that an earlier version wrote restore with this one: it takes them here, out of this repository's history."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeGuest
from tests.servers.guest import PATIENCE, Guest

ROOT = Path(__file__).parents[2]
BEFORE_ENCRYPTION = "60ced98b861921753e59d13d4ed70668a319b416"
"""The last commit whose manifests know of no encryption, and whose segments are frames of 4 MiB."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of that version."""
    tree = tmp_path_factory.mktemp("earlier")
    archive = ["git", "-C", str(ROOT), "archive", BEFORE_ENCRYPTION, "guestagent"]
    packed = subprocess.run(archive, capture_output=True, timeout=PATIENCE, check=False)
    if packed.returncode:
        pytest.skip("this copy of the repository has no history")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed.stdout, timeout=PATIENCE, check=True)
    return tree


def taken(guest: Guest, tree: Path, *words: str) -> Any:
    """A backup that the tree's version takes."""
    done = subprocess.run(
        guest.argv("backup", "create", *words, "-f", "json"),
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_chain_of_before_encryption_is_verified_restored_and_continued(
    guest: Guest, make_guest: MakeGuest, earlier: Path
) -> None:
    guest.server.script(
        "CREATE DATABASE d; USE d; CREATE TABLE t (id INT PRIMARY KEY, v VARBINARY(2000));"
        "INSERT INTO t SELECT seq, RANDOM_BYTES(1000) FROM seq_1_to_8000;"
    )
    full = taken(guest, earlier, "old")
    guest.server.script("USE d; UPDATE t SET v = 'changed' WHERE id % 7 = 0;")
    link = taken(guest, earlier, "old.1", "--parent", full["id"])
    manifest = json.loads(next((guest.place / "store").glob(f"*/{link['id']}/manifest.json")).read_text())
    assert "mac" not in manifest
    guest.server.script("USE d; DELETE FROM t WHERE id < 100;")
    tip = guest.json("backup", "create", "new", "--parent", "latest")
    assert tip["parent_id"] == link["id"]
    assert len(guest.json("backup", "verify", tip["id"])) == 3
    other = make_guest("guest2", empty=True)
    assert other.json("restore", tip["id"], "--start")["links"] == 3
    assert other.server.content() == guest.server.content()
