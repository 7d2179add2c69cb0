"""A table is made, dumped, renamed, and reaches the disk only while the next dump runs: mariabackup brings it whole."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.running import in_memory, tool_on_path, wait_until
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace

HELD = """
case "$*" in *--incremental-lsn*) ;; *) exec "$real" "$@";; esac
mkfifo "$place/pipe"
{ dd bs=1 count=1 status=none; touch "$place/held"; until [ -e "$place/go" ]; do sleep 0.05; done; exec cat; } \\
    <"$place/pipe" &
"$real" "$@" >"$place/pipe"; code=$?; wait; exit $code
"""
"""Has its list of tables, and no more than a pipe can take of them, until it may go."""


def on_disk(table: Path) -> bool:
    """Whether the first page of a table was ever written."""
    return any(table.read_bytes()[:1000])


def test_a_table_that_was_renamed_before_it_reached_the_disk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with in_memory(), workplace() as place, MariaDB() as server, tool_on_path(place, f"place={place}\n{HELD}") as found:
        monkeypatch.setenv("PATH", found["PATH"])
        guest = Guest("guest1", server, place, f"file://{place}/store")
        guest.account()
        server.script(
            "CREATE DATABASE shop; CREATE TABLE shop.late (id INT PRIMARY KEY); INSERT INTO shop.late VALUES (1)"
        )
        full = guest.back_up()
        server.script("RENAME TABLE shop.late TO shop.moved; INSERT INTO shop.moved VALUES (2)")
        with ThreadPoolExecutor(1) as pool:
            link = pool.submit(guest.back_up, full)
            wait_until((place / "held").exists, "the tool has its list of tables")
            server.query("SET GLOBAL innodb_max_dirty_pages_pct = 0")
            wait_until(lambda: on_disk(server.datadir / "shop" / "moved.ibd"), "the table is on disk")
            (place / "go").touch()
            tip = link.result()
        with MariaDB(datadir=place / "twin", running=False) as twin:
            Guest("guest2", twin, place, guest.url).restore(tip, start=True)
            assert twin.query("SELECT id FROM shop.moved") == ((1,), (2,))
        assert "shop/late.ibd was renamed to shop/moved.ibd" in caplog.text
