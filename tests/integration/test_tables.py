"""Tables of every kind, under every name: what a full and an incremental bring back is what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from guestagent.errors import Corrupt, Refused, ToolError
from guestagent.manifest import Backup
from tests.integration.running import in_memory
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, give_to_server, workplace

LONG = "x" * 64
WIDE = "表" * 49
"""As many of its kind as a file's name can have in an incremental, where .ibd.delta follows."""
TOO_WIDE = "表" * 50

KINDS = """
INSTALL SONAME 'ha_archive'; INSTALL SONAME 'ha_blackhole';
CREATE DATABASE kinds; USE kinds;
CREATE TABLE redundant (id INT PRIMARY KEY, v VARCHAR(500), KEY (v(50))) ENGINE=InnoDB ROW_FORMAT=REDUNDANT;
CREATE TABLE compact (id INT PRIMARY KEY, v VARCHAR(500), b LONGBLOB) ENGINE=InnoDB ROW_FORMAT=COMPACT;
CREATE TABLE dynamic (id INT PRIMARY KEY, v VARCHAR(500), b LONGBLOB) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
CREATE TABLE zipped (id INT PRIMARY KEY, v VARCHAR(500), b LONGBLOB) ENGINE=InnoDB KEY_BLOCK_SIZE=4;
CREATE TABLE punched (id INT PRIMARY KEY, v VARCHAR(500), b LONGBLOB) ENGINE=InnoDB PAGE_COMPRESSED=1;
CREATE TABLE ranged (id INT, d DATE, v VARCHAR(50), PRIMARY KEY (id, d)) ENGINE=InnoDB
    PARTITION BY RANGE (YEAR(d)) SUBPARTITION BY HASH (id) SUBPARTITIONS 2
    (PARTITION old VALUES LESS THAN (2020), PARTITION `new ü` VALUES LESS THAN MAXVALUE);
CREATE TABLE texts (id INT PRIMARY KEY, body TEXT, FULLTEXT KEY words (body)) ENGINE=InnoDB;
CREATE TABLE places (id INT PRIMARY KEY, p POINT NOT NULL, SPATIAL KEY (p)) ENGINE=InnoDB;
CREATE TABLE made (id INT PRIMARY KEY, a INT, b INT AS (a * 2) VIRTUAL, c INT AS (a + 1) STORED, KEY (b)) ENGINE=InnoDB;
CREATE TABLE parent (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE) ENGINE=InnoDB;
CREATE SEQUENCE numbers START WITH 5 INCREMENT BY 3 NOCACHE;
CREATE TABLE versioned (id INT PRIMARY KEY, v INT) ENGINE=InnoDB WITH SYSTEM VERSIONING;
CREATE TABLE checked (id INT PRIMARY KEY, j JSON, u UUID, i INET6, CHECK (id > 0)) ENGINE=InnoDB;
CREATE TABLE aria_safe (id INT PRIMARY KEY, v VARCHAR(500)) ENGINE=Aria TRANSACTIONAL=1;
CREATE TABLE aria_plain (id INT PRIMARY KEY, v VARCHAR(500)) ENGINE=Aria TRANSACTIONAL=0;
CREATE TABLE aria_parts (id INT PRIMARY KEY, v VARCHAR(500)) ENGINE=Aria PARTITION BY HASH (id) PARTITIONS 3;
CREATE TABLE my1 (id INT, v VARCHAR(50), KEY (id)) ENGINE=MyISAM; CREATE TABLE my2 LIKE my1;
CREATE TABLE merged (id INT, v VARCHAR(50), KEY (id)) ENGINE=MERGE UNION=(my1, my2) INSERT_METHOD=LAST;
CREATE TABLE commas (id INT NOT NULL, v VARCHAR(50) NOT NULL) ENGINE=CSV;
CREATE TABLE archived (id INT NOT NULL, v VARCHAR(50)) ENGINE=ARCHIVE;
CREATE TABLE hole (id INT) ENGINE=BLACKHOLE; CREATE TABLE volatile (id INT) ENGINE=MEMORY;
CREATE VIEW looked AS SELECT id, v FROM dynamic WHERE id < 50;
CREATE FUNCTION doubled(n INT) RETURNS INT DETERMINISTIC RETURN n * 2;
CREATE PROCEDURE counted() SELECT COUNT(*) FROM dynamic;
CREATE TRIGGER shouted BEFORE INSERT ON commas FOR EACH ROW SET NEW.v = UPPER(NEW.v);
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01' DO DELETE FROM my1;
CREATE ROLE readers; GRANT SELECT ON kinds.* TO readers;
CREATE USER 'ann'@'%' IDENTIFIED BY 'x' WITH MAX_USER_CONNECTIONS 3; GRANT readers TO 'ann'@'%';
GRANT SELECT (id), INSERT ON kinds.dynamic TO 'ann'@'%'; GRANT EXECUTE ON PROCEDURE kinds.counted TO 'ann'@'%';
"""
ROWS = """
USE kinds;
INSERT INTO redundant SELECT seq + @n, REPEAT('r', 300) FROM seq_1_to_300;
INSERT INTO compact SELECT seq + @n, 'c', REPEAT(MD5(seq), 500) FROM seq_1_to_50;
INSERT INTO dynamic (id, v, b) SELECT seq + @n, 'd', REPEAT(MD5(seq), 500) FROM seq_1_to_50;
INSERT INTO zipped SELECT seq + @n, 'z', REPEAT(MD5(seq), 500) FROM seq_1_to_50;
INSERT INTO punched SELECT seq + @n, 'p', REPEAT(MD5(seq), 500) FROM seq_1_to_50;
INSERT INTO ranged SELECT seq + @n, '2010-01-01' + INTERVAL seq MONTH, 'x' FROM seq_1_to_200;
INSERT INTO texts SELECT seq + @n, CONCAT('the quick fox no', seq) FROM seq_1_to_100;
INSERT INTO places SELECT seq + @n, Point(seq, @n) FROM seq_1_to_100;
INSERT INTO made (id, a) SELECT seq + @n, seq FROM seq_1_to_100;
INSERT INTO parent SELECT seq + @n FROM seq_1_to_100; INSERT INTO child SELECT id, id FROM parent WHERE id > @n;
SELECT NEXTVAL(numbers);
INSERT INTO versioned SELECT seq + @n, 1 FROM seq_1_to_50; UPDATE versioned SET v = v + 1;
DELETE FROM versioned WHERE id % 7 = 0;
INSERT INTO checked SELECT seq + @n, '{"a": 1}', UUID(), '::1' FROM seq_1_to_50;
INSERT INTO aria_safe SELECT seq + @n, REPEAT('s', 200) FROM seq_1_to_300;
INSERT INTO aria_plain SELECT seq + @n, REPEAT('p', 200) FROM seq_1_to_300;
INSERT INTO aria_parts SELECT seq + @n, REPEAT('q', 200) FROM seq_1_to_300;
INSERT INTO my1 SELECT seq + @n, 'one' FROM seq_1_to_100; INSERT INTO merged SELECT seq + @n, 'two' FROM seq_1_to_100;
INSERT INTO commas SELECT seq + @n, 'row, "quoted"' FROM seq_1_to_20;
INSERT INTO archived SELECT seq + @n, REPEAT('a', 40) FROM seq_1_to_300;
INSERT INTO hole VALUES (1);
"""
CHANGES = """
DELETE FROM parent WHERE id % 10 = 0; UPDATE compact SET b = REPEAT('x', 9000) WHERE id % 2 = 0;
ALTER TABLE ranged DROP PARTITION old; ALTER TABLE dynamic ADD COLUMN late INT DEFAULT 7, ALGORITHM=INSTANT;
ALTER TABLE texts ADD FULLTEXT KEY again (body); ALTER TABLE redundant ROW_FORMAT=DYNAMIC; TRUNCATE TABLE aria_plain;
DROP VIEW looked; DROP USER 'ann'@'%'; CREATE USER 'bob'@localhost IDENTIFIED BY 'y'; CREATE INDEX k ON punched (v);
"""
NAMES = [
    LONG,
    WIDE,
    "a/b",
    "..",
    ".hidden",
    "#sql-x",
    "@0020",
    "sp ace ",
    "t.ibd",
    "`tick`\"'",
    "naïve",
    "ß\\",
    "con",
    "*?%",
]
OLD_NAME = "#mysql50#a-b"
"""What servers call a directory whose name is not encoded as theirs are."""
SCHEMAS = ["dotted.schema", "sla/sh#ha@at %p", "#sql", ".start", "y" * 64, "空", OLD_NAME]


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def named_tables() -> Iterator[str]:
    """Statements that make a table of each engine under each odd name, and a few tables in each odd schema."""
    yield "CREATE DATABASE `names`"
    yield "CREATE DATABASE `empty`"
    for number, name in enumerate(NAMES):
        engine = ("InnoDB", "MyISAM", "Aria")[number % 3] if name not in (LONG, WIDE) else "InnoDB"
        yield f"CREATE TABLE `names`.{quoted(name.strip())} (id INT PRIMARY KEY) ENGINE={engine}"
    for schema in SCHEMAS:
        if schema != OLD_NAME:
            yield f"CREATE DATABASE {quoted(schema)}"
        for engine in ("InnoDB", "MyISAM", "Aria"):
            yield f"CREATE TABLE {quoted(schema)}.`t.{engine}` (id INT PRIMARY KEY) ENGINE={engine}"


def fill_named(server: MariaDB, number: int) -> None:
    """Put a row into each of those."""
    tables = server.query(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
    )
    for schema, table in tables:
        if schema in ("names", *SCHEMAS):
            server.query(f"INSERT INTO {quoted(schema)}.{quoted(table)} VALUES ({number})")


@dataclass(frozen=True)
class Twins:
    """A server, and another that was restored from an incremental of it while it stood still."""

    source: Guest
    restored: Guest
    full: Backup


Make = Callable[..., Twins]


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    """One pair for all that can live on one server."""
    with workplace() as place, ExitStack() as stack:
        source = guest_on(stack.enter_context(MariaDB()), place, "guest1")
        server = source.server
        server.script("SET @n = 0;" + KINDS + ROWS)
        (server.datadir / "a-b").mkdir()
        give_to_server(server.datadir / "a-b")
        for statement in named_tables():
            server.query(statement)
        fill_named(server, 1)
        full = source.back_up()
        server.script("SET @n = 1000;" + ROWS + CHANGES)
        fill_named(server, 2)
        yield restored_twin(source, full, stack)


def guest_on(server: MariaDB, place: Path, name: str) -> Guest:
    guest = Guest(name, server, place, f"file://{place}/store")
    if server.running:
        guest.account()
    return guest


def restored_twin(source: Guest, full: Backup, stack: ExitStack, *, options: Sequence[str] = ()) -> Twins:
    """Take an incremental and restore it beside its source."""
    tip = source.back_up(full)
    server = MariaDB(datadir=source.place / "twin", running=False, options=options)
    restored = guest_on(stack.enter_context(server), source.place, "guest2")
    restored.restore(tip, start=True)
    return Twins(source, restored, full)


# -- all on one server


def test_tables_of_all_kinds_and_names_are_equal(twins: Twins) -> None:
    before, after = twins.source.server.content(), twins.restored.server.content()
    assert len(before) > 100
    for content in (before, after):
        del content["kinds.made"]  # a table with virtual columns has another checksum each time
    assert after == before


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id, v, row_start, row_end FROM kinds.versioned FOR SYSTEM_TIME ALL ORDER BY 1, 3",
        "SELECT COUNT(*) FROM kinds.texts WHERE MATCH (body) AGAINST ('fox')",
        "SELECT COUNT(*) FROM kinds.places WHERE MBRWithin(p, ST_GeomFromText('LINESTRING(0 -1,50 9999)'))",
        "SELECT * FROM kinds.made ORDER BY 1",
        "SELECT COUNT(*), SUM(b), SUM(c) FROM kinds.made FORCE INDEX (b) WHERE b > 10",
        "SELECT * FROM kinds.merged ORDER BY 1, 2",
        "SELECT COUNT(*) FROM kinds.archived",
        "SELECT next_not_cached_value FROM kinds.numbers",
        "SELECT kinds.doubled(21)",
        "SELECT user, host, priv FROM mysql.global_priv ORDER BY 1, 2",
        "SELECT * FROM mysql.roles_mapping",
        "SELECT * FROM mysql.tables_priv ORDER BY 1, 2, 3, 4",
        "SELECT * FROM mysql.columns_priv",
        "SELECT * FROM mysql.procs_priv",
        "SELECT name, dl FROM mysql.plugin ORDER BY 1",
    ],
)
def test_what_checksums_do_not_cover_is_equal(twins: Twins, statement: str) -> None:
    rows = twins.source.server.query(statement)
    assert rows or "columns_priv" in statement or "procs_priv" in statement  # those of a user that was dropped
    assert twins.restored.server.query(statement) == rows


def test_the_restored_server_finds_nothing_wrong(twins: Twins) -> None:
    server = twins.restored.server
    tables = server.query(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type LIKE '%BASE%' AND"
        " engine IN ('InnoDB', 'MyISAM', 'Aria', 'ARCHIVE', 'CSV') AND table_schema <> 'performance_schema'"
    )
    for schema, table in tables:
        *_, (_, _, kind, text) = server.query(f"CHECK TABLE {quoted(schema)}.{quoted(table)} EXTENDED")
        assert (kind, text) in (("status", "OK"), ("note", "The storage engine for the table doesn't support check"))


def test_the_restored_server_takes_writes_to_all_of_them(twins: Twins) -> None:
    server = twins.restored.server
    fill_named(server, 3)
    server.script("SET @n = 5000;" + ROWS)
    assert server.value("SELECT COUNT(*) FROM kinds.archived") == 900


# -- what needs a server of its own


def test_tables_outside_the_datadir_are_refused_where_they_would_not_come_back() -> None:
    with workplace() as place, ExitStack() as stack:
        outside = place / "outside"
        outside.mkdir()
        give_to_server(outside)
        source = guest_on(stack.enter_context(MariaDB()), place, "guest1")
        there = f"DATA DIRECTORY='{outside}'"
        for kind in (
            f"ENGINE=InnoDB {there}",
            f"ENGINE=InnoDB PARTITION BY RANGE (id) (PARTITION p VALUES LESS THAN MAXVALUE {there})",
            f"ENGINE=Aria {there}",
            f"ENGINE=Aria INDEX DIRECTORY='{outside}'",
        ):
            source.server.script(f"CREATE DATABASE d; CREATE TABLE d.a (id INT PRIMARY KEY) {kind};")
            with pytest.raises(Refused, match=r"1 tables lie outside the datadir, d/a.* without DATA DIRECTORY"):
                source.back_up()
            source.server.script("DROP DATABASE d;")
        source.server.script("CREATE DATABASE d; CREATE TABLE d.`a``b` (id INT PRIMARY KEY) ENGINE=Aria;")
        with pytest.raises(Refused, match=r"1 tables have a backtick in their name.*: d/a@0060b.MAD is of one; rename"):
            source.back_up()
        source.server.script("DROP TABLE d.`a``b`; CREATE TABLE d.`a``b` (id INT PRIMARY KEY) ENGINE=InnoDB;")
        source.back_up()
        source.server.script("DROP DATABASE d;")
        source.server.script(
            "CREATE DATABASE d; USE d; CREATE TABLE i (id INT PRIMARY KEY) ENGINE=InnoDB;"
            f"CREATE TABLE m (id INT PRIMARY KEY) ENGINE=MyISAM {there} INDEX DIRECTORY='{outside}';"
            "INSERT INTO i SELECT seq FROM seq_1_to_100; INSERT INTO m SELECT seq FROM seq_1_to_100;"
        )
        move_out(source.server, "d", outside)
        full = source.back_up()
        source.server.script("USE d; DELETE FROM m WHERE id % 3 = 0; DELETE FROM i WHERE id % 3 = 0;")
        restored = restored_twin(source, full, stack).restored.server
        assert restored.checksums() == source.server.checksums()
        restored.script("DROP DATABASE d;")
        assert source.server.query("SELECT COUNT(*) FROM d.m UNION ALL SELECT COUNT(*) FROM d.i") == ((67,), (67,))


def move_out(server: MariaDB, schema: str, outside: Path) -> None:
    """Have a link in the datadir lead to a schema."""
    server.stop()
    (server.datadir / schema).rename(outside / schema)
    (server.datadir / schema).symlink_to(outside / schema)
    server.start()


def encrypted(keys: Path) -> list[str]:
    """Options of a server that encrypts all that it can."""
    return [
        "--plugin-load-add=file_key_management",
        f"--file-key-management-filename={keys}",
        "--innodb-encrypt-tables=FORCE",
        "--innodb-encrypt-log=ON",
        "--innodb-encryption-threads=2",
        "--aria-encrypt-tables=ON",
        "--encrypt-tmp-files=ON",
        "--encrypt-binlog=ON",
    ]


def test_encrypted_tables_come_back_where_the_key_is() -> None:
    with workplace() as place, ExitStack() as stack:
        keys = place / "keys"
        keys.write_text(f"1;{'11' * 32}\n2;{'22' * 16}\n")
        source = guest_on(stack.enter_context(MariaDB(options=encrypted(keys))), place, "guest1")
        source.server.script(
            "CREATE DATABASE d; USE d;"
            "CREATE TABLE a (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB;"
            "CREATE TABLE other_key (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB ENCRYPTION_KEY_ID=2 PAGE_COMPRESSED=1;"
            "CREATE TABLE aria (id INT PRIMARY KEY, v TEXT) ENGINE=Aria;"
            "INSERT INTO a SELECT seq, 'top secret words' FROM seq_1_to_2000;"
            "INSERT INTO other_key SELECT * FROM a; INSERT INTO aria SELECT * FROM a;"
        )
        full = source.back_up()
        source.server.script(
            "USE d; UPDATE a SET v = 'more secret words' WHERE id % 3 = 0; INSERT INTO aria SELECT id + 9000, v FROM a;"
            "ALTER TABLE a ENCRYPTION_KEY_ID=2; CREATE TABLE late ENGINE=InnoDB SELECT * FROM other_key;"
        )
        twins = restored_twin(source, full, stack, options=encrypted(keys))
        assert twins.restored.server.content() == source.server.content()
        read = b"".join(path.read_bytes() for path in (place / "twin" / "d").iterdir())
        assert b"secret words" not in read

        keys.rename(place / "moved")
        with pytest.raises(ToolError, match=r"mariabackup failed with exit status \d"):
            twins.restored.restore(full, datadir=place / "third")
        assert not (place / "third").exists()


def test_thousands_of_small_tables() -> None:
    with workplace() as place, ExitStack() as stack:
        source = guest_on(stack.enter_context(MariaDB()), place, "guest1")
        engines = ["InnoDB", "MyISAM", "Aria", "MyISAM"]
        source.server.script(
            "CREATE DATABASE many; USE many;"
            + "".join(
                f"CREATE TABLE t{n} (id INT) ENGINE={engines[n % 4]}; INSERT INTO t{n} VALUES ({n});"
                for n in range(2000)
            )
        )
        full = source.back_up()
        source.server.script(
            "USE many;" + "".join(f"UPDATE t{n} SET id = -id; DROP TABLE t{n + 1};" for n in range(0, 500, 50))
        )
        restored = restored_twin(source, full, stack).restored
        assert restored.server.checksums() == source.server.checksums()
        assert len(restored.server.checksums()) == 1990


def test_a_name_too_long_for_an_incremental_is_refused_when_it_is_taken() -> None:
    with workplace() as place, MariaDB() as server:
        source = guest_on(server, place, "guest1")
        server.script(f"CREATE DATABASE d; CREATE TABLE d.`{TOO_WIDE}` (id INT PRIMARY KEY) ENGINE=InnoDB;")
        server.query("SET GLOBAL innodb_log_checkpoint_now = 1")  # else the whole table comes as name.new
        full = source.back_up()
        server.script(f"INSERT INTO d.`{TOO_WIDE}` VALUES (1)")
        server.query("SET GLOBAL innodb_log_checkpoint_now = 1")
        with pytest.raises(Corrupt, match=r"name that is too long.*rename the table"):
            source.back_up(full)
        target = guest_on(MariaDB(datadir=place / "twin", running=False), place, "guest2")
        target.restore(full)
