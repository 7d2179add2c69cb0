"""The guide's chain on real servers: what is restored is what was there, at every link."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from guestagent.errors import Refused
from guestagent.manifest import Backup
from tests.integration.conftest import MakeGuest
from tests.servers.guest import PATIENCE, Guest

FIRST = """
CREATE DATABASE shop; CREATE DATABASE `empty one`; CREATE DATABASE `naïve schema`;
USE shop;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(200), b LONGBLOB) ENGINE=InnoDB;
CREATE TABLE `odd name, ünïcode/…` (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;
CREATE TABLE ar (id INT PRIMARY KEY, v TEXT) ENGINE=Aria;
CREATE TABLE cs (id INT NOT NULL, v VARCHAR(20) NOT NULL) ENGINE=CSV;
CREATE TABLE parted (id INT PRIMARY KEY, v INT) ENGINE=InnoDB PARTITION BY HASH (id) PARTITIONS 4;
CREATE TABLE packed (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB ROW_FORMAT=COMPRESSED;
CREATE TABLE squeezed (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB PAGE_COMPRESSED=1;
CREATE VIEW vw AS SELECT id, v FROM t WHERE id < 50;
CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.v = UPPER(NEW.v);
CREATE PROCEDURE pr() SELECT COUNT(*) FROM t;
CREATE EVENT ev ON SCHEDULE EVERY 1 SECOND DO INSERT INTO my SELECT MAX(id) + 1, 'event' FROM my;
INSERT INTO t (v, b) SELECT CONCAT('row ', seq), REPEAT(MD5(seq), 20) FROM seq_1_to_3000;
INSERT INTO `odd name, ünïcode/…` SELECT seq, 'ä' FROM seq_1_to_100;
INSERT INTO my SELECT seq, 'my' FROM seq_1_to_300;
INSERT INTO ar SELECT seq, 'ar' FROM seq_1_to_300;
INSERT INTO cs SELECT seq, 'cs' FROM seq_1_to_20;
INSERT INTO parted SELECT seq, seq FROM seq_1_to_400;
INSERT INTO packed SELECT seq, REPEAT('p', 500) FROM seq_1_to_200;
INSERT INTO squeezed SELECT seq, REPEAT('s', 500) FROM seq_1_to_200;
"""

SECOND = """
USE shop;
UPDATE t SET v = CONCAT(v, '!') WHERE id % 3 = 0;
CREATE TABLE added (id INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO added SELECT seq FROM seq_1_to_100;
ALTER TABLE ar ADD COLUMN extra INT DEFAULT 7;
INSERT INTO my SELECT seq + 1000, 'more' FROM seq_1_to_100;
CREATE DATABASE `second`; CREATE TABLE `second`.x (id INT) ENGINE=MyISAM;
"""

THIRD = """
USE shop;
DROP TABLE packed; TRUNCATE TABLE squeezed; RENAME TABLE added TO moved;
ALTER TABLE parted COALESCE PARTITION 2;
DELETE FROM t WHERE id % 5 = 0; OPTIMIZE TABLE t;
DROP DATABASE `second`; DROP VIEW vw; CREATE VIEW vw2 AS SELECT COUNT(*) c FROM t;
"""


def test_the_guides_chain_through_the_commands(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script(FIRST)
    full = guest.json("backup", "create", "backup1")
    guest.server.script(SECOND)
    first = guest.json("backup", "create", "backup1.1", "--parent", full["id"])
    guest.server.script(THIRD)
    second = guest.json("backup", "create", "backup1.2", "--parent", "latest")
    assert [one["parent_id"] for one in (full, first, second)] == [None, full["id"], first["id"]]
    assert first["from_lsn"] == full["to_lsn"]
    assert {one["status"] for one in (full, first, second)} == {"COMPLETED"}
    assert [row["name"] for row in guest.json("backup", "list")] == ["backup1", "backup1.1", "backup1.2"]
    assert [row["tree"] for row in guest.json("backup", "tree")] == ["backup1", "└─ backup1.1", "   └─ backup1.2"]
    assert guest.json("backup", "show", first["id"]) == first
    assert len(guest.json("backup", "verify", second["id"])) == 3

    other = make_guest("guest2", empty=True)
    restored = other.json("restore", second["id"], "--start")
    assert restored["links"] == 3
    assert restored["started"]
    assert other.server.content() == guest.server.content()
    assert other.server.value("SELECT @@event_scheduler") == "OFF"
    assert other.server.query("SHOW ALL SLAVES STATUS") == ()

    newer = other.json("backup", "create", "backup2.1", "--parent", second["id"])
    assert (newer["instance_id"], newer["parent_id"]) == ("guest2", second["id"])


def test_an_incremental_of_more_pages_than_a_chunk_of_ours_holds(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script(
        "CREATE DATABASE d; USE d; CREATE TABLE t (id INT PRIMARY KEY, v VARBINARY(4000), w VARBINARY(4000));"
        "INSERT INTO t SELECT seq, RANDOM_BYTES(1000), RANDOM_BYTES(1000) FROM seq_1_to_1000;"
    )
    full = guest.back_up()
    guest.server.script(
        "USE d; SET @b = REPEAT(RANDOM_BYTES(1000), 4); INSERT INTO t SELECT seq, @b, @b FROM seq_1001_to_10000;"
        "FLUSH TABLES t FOR EXPORT; UNLOCK TABLES;"  # else some of it comes as redo, of which there is less
    )
    grown = guest.back_up(full)
    assert grown.manifest.raw_size > 72_000_000
    other = make_guest("guest2", empty=True)
    other.restore(grown, start=True)
    assert other.server.content() == guest.server.content()


def test_a_chain_across_instances_restores_from_its_location_alone(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script(FIRST)
    full = guest.back_up()
    second = make_guest("guest2", empty=True)
    second.restore(full, start=True)
    second.server.script(SECOND)
    tip = second.back_up(full)
    expected = second.server.content()

    third = make_guest("guest3", empty=True)
    bare = third.place / "bare.conf"
    bare.write_text(f"[DEFAULT]\nstate_dir = {third.place}/bare\n[database]\nos_user = {_owner(guest)}\n")
    argv = [sys.executable, "-m", "guestagent", "--config-file", str(bare), "restore", tip.location]
    done = subprocess.run(
        [*argv, "--datadir", str(third.server.datadir), "-f", "json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["started"] is False
    third.server.start()
    assert third.server.content() == expected


def _owner(guest: Guest) -> str:
    return guest.server.datadir.owner()


LINKS = 20
RESTORED = (*range(8), 13, 19)
"""All kinds of links, of which each comes again after six, and what is far from the base."""


def test_links_of_twenty_restore_to_their_own_data(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script("CREATE DATABASE d; CREATE TABLE d.t (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB;")
    chain: list[tuple[Backup, dict[str, int | str]]] = []
    for number in range(LINKS):
        guest.server.script(
            f"USE d; INSERT INTO t SELECT seq + {number * 1000}, REPEAT(MD5(seq), 10) FROM seq_1_to_200;"
            f"UPDATE t SET v = CONCAT(v, {number}) WHERE id % {number + 2} = 0;"
            + (f"CREATE TABLE n{number} ENGINE={'MyISAM' if number % 2 else 'InnoDB'} SELECT * FROM t LIMIT 50;")
            + (f"DROP TABLE n{number - 2};" if number % 3 == 2 else "")
        )
        backup = guest.back_up(chain[-1][0] if chain else None)
        chain.append((backup, guest.server.content()))
    other = make_guest("guest2", empty=True)
    for backup, expected in (chain[number] for number in RESTORED):
        other.server.stop()
        other.restore(backup, replace=True, start=True)
        assert other.server.content() == expected


def test_an_idle_server_makes_links_of_equal_lsns_that_restore(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script(FIRST + "DROP EVENT ev;")
    guest.server.query("SET GLOBAL innodb_max_purge_lag_wait = 0")
    chain = [guest.back_up()]
    for _ in range(3):
        chain.append(guest.back_up(chain[-1]))
    other = make_guest("guest2", empty=True)
    other.restore(chain[-1], start=True)
    assert other.server.content() == guest.server.content()


@pytest.mark.parametrize("how", ["wiped", "older", "branch"])
def test_an_incremental_off_this_servers_history_is_refused(guest: Guest, make_guest: MakeGuest, how: str) -> None:
    guest.server.script(FIRST)
    full = guest.back_up()
    guest.server.script(SECOND)
    first = guest.back_up(full)
    if how == "wiped":
        guest.server.stop()
        guest.server.install()
        guest.server.start()
        guest.account()
        guest.server.script(FIRST + SECOND + "INSERT INTO shop.t (v) SELECT 'x' FROM seq_1_to_20000;")
    else:
        guest.restore(full, replace=True, start=True)
    with pytest.raises(Refused, match="take a full") as refused:
        guest.back_up(first)
    assert str(first.id) in str(refused.value) or "incarnation" in str(refused.value)
    if how == "branch":
        guest.server.script(SECOND)
        other_branch = guest.back_up(full)
        expected = guest.server.content()
        target = make_guest("guest2", empty=True)
        target.restore(other_branch, start=True)
        assert target.server.content() == expected
