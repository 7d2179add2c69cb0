"""A real MariaDB and a real mariabackup: what the server says, what the account may, what option files carry."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guestagent.database import answers, connect
from guestagent.engines import Connection, DumpRequest, PrepareRequest, engine_for, engine_named
from guestagent.engines.optionfile import client_options
from guestagent.errors import DatabaseError
from guestagent.model import Lsn, ServerFacts
from tests.servers.mariadb import BACKUP_GRANTS, MariaDB

TIMEOUT = 10.0
ENGINE = engine_named("mariabackup")
NASTY = r"""it's "quoted" \ back\nslash #hash ;semi $HOME [x] ünïcödé 🔑 """
PASSWORDS = (
    "plain",
    "it's",
    'double"quote',
    '"wrapped"',
    "'wrapped'",
    "back\\slash",
    "ends with \\",
    "a#b",
    'quote"#hash',
    "# c",
    "; d",
    " blanks around ",
    "tab\there",
    r"\n\t\s",
    "ünïcödé 🔑",
    "100%",
    "[client]",
    "!include /x",
    "x" * 200,
    NASTY,
)


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    with MariaDB(networking=True) as running:
        running.script("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY); INSERT INTO shop.t VALUES (1)")
        yield running


@dataclass(frozen=True)
class Dump:
    """What a run of the real tool left."""

    request: DumpRequest
    returncode: int
    stream: bytes
    stderr: list[str]

    def texts(self) -> dict[str, str]:
        return texts(self.request.facts_dir)


def texts(directory: Path) -> dict[str, str]:
    names = ("xtrabackup_checkpoints", "xtrabackup_info")
    return {name: (directory / name).read_text() for name in names if (directory / name).exists()}


def dump(connection: Connection, place: Path, *, since: int | None = None) -> Dump:
    place.mkdir(exist_ok=True)
    option_file = place / "client.cnf"
    option_file.write_text(ENGINE.option_file(connection))
    request = DumpRequest(
        option_file,
        place / "dump",
        place / "facts",
        since=None if since is None else Lsn(since),
        parallel=2,
    )
    done = subprocess.run(ENGINE.dump_argv(request), capture_output=True, timeout=60, check=False)
    return Dump(request, done.returncode, done.stdout, done.stderr.decode(errors="replace").splitlines())


def facts_of(connection: Connection) -> ServerFacts:
    with connect(connection, timeout=TIMEOUT) as database:
        return database.facts()


# -- what the server says


def test_facts_with_the_least_account(server: MariaDB) -> None:
    found = facts_of(server.backup_account())
    assert (found.datastore, found.account) == ("mariadb", "'backup'@'localhost'")
    assert found.datadir == server.datadir.resolve()
    assert found.grants == frozenset(BACKUP_GRANTS)
    assert found.version_text == server.value("SELECT @@version")
    assert str(found.version) in found.version_text
    assert engine_for(found).missing_grants(found) == ()


def test_the_lsn_moves_with_writes(server: MariaDB) -> None:
    account = server.backup_account()
    before = facts_of(account).lsn
    server.query("INSERT INTO shop.t SELECT seq FROM shop.seq_1000_to_2000")
    assert 0 < before < facts_of(account).lsn


def test_an_account_without_any_privilege_is_told_all_that_it_lacks(server: MariaDB) -> None:
    found = facts_of(server.backup_account("nobody", grants=()))
    assert found.grants == frozenset()
    assert ENGINE.missing_grants(found) == BACKUP_GRANTS


def test_root_has_all_privileges(server: MariaDB) -> None:
    assert ENGINE.missing_grants(facts_of(server.connection)) == ()


def test_privileges_of_a_default_role_count(server: MariaDB) -> None:
    account = server.backup_account("by_role", grants=())
    server.query("CREATE OR REPLACE ROLE dumper")
    server.query(f"GRANT {', '.join(BACKUP_GRANTS)} ON *.* TO dumper")
    server.query("GRANT dumper TO by_role@localhost")
    assert ENGINE.missing_grants(facts_of(account)) == BACKUP_GRANTS
    server.query("SET DEFAULT ROLE dumper FOR by_role@localhost")
    assert ENGINE.missing_grants(facts_of(account)) == ()


@pytest.mark.parametrize(
    "grants",
    [BACKUP_GRANTS, ("RELOAD", "PROCESS", "SUPER"), *(set(BACKUP_GRANTS) - {grant} for grant in BACKUP_GRANTS)],
    ids=lambda grants: "+".join(sorted(grants)),
)
def test_the_real_tool_agrees_on_what_is_missing(server: MariaDB, tmp_path: Path, grants: Sequence[str]) -> None:
    account = server.backup_account("partly", grants=sorted(grants))
    missing = ENGINE.missing_grants(facts_of(account))
    assert missing == (() if "SUPER" in grants else tuple(grant for grant in BACKUP_GRANTS if grant not in grants))
    assert (dump(account, tmp_path / "job").returncode == 0) is (missing == ())


# -- nobody there, or nobody let in


def test_a_wrong_password(server: MariaDB) -> None:
    account = replace(server.backup_account(), password="not the secret")
    with pytest.raises(DatabaseError, match=r"access denied for backup at .*; check user and password") as caught:
        connect(account, timeout=TIMEOUT)
    assert "not the secret" not in f"{caught.value}{caught.value.__cause__}"


def test_a_server_that_dies_and_comes_back() -> None:
    with MariaDB() as server, connect(server.connection, timeout=TIMEOUT) as database:
        server.kill()
        with pytest.raises(DatabaseError, match="the server went away while SELECT @@version"):
            database.facts()
        with pytest.raises(DatabaseError, match=r"cannot reach the server at .*: connection refused; is it running"):
            connect(server.connection, timeout=TIMEOUT)
        with pytest.raises(DatabaseError, match=r"no answer within 0\.5 s: cannot reach"):
            answers(server.connection, timeout=0.5)
        late = threading.Timer(1, server.start)
        late.start()
        assert answers(server.connection, timeout=120).startswith("10.")
        late.join(120)


def test_a_server_that_does_not_know_us_has_answered(server: MariaDB) -> None:
    stranger = replace(server.connection, user="stranger", password="x")
    assert answers(stranger, timeout=TIMEOUT) == server.value("SELECT @@version")


# -- option files


@pytest.mark.parametrize("password", PASSWORDS)
def test_every_password_reaches_the_server(server: MariaDB, tmp_path: Path, password: str) -> None:
    account = server.backup_account("nasty", password)
    assert facts_of(account).account == "'nasty'@'localhost'"
    path = tmp_path / "client.cnf"
    path.write_text(ENGINE.option_file(account))
    command = ["mariadb", f"--defaults-file={path}", "--batch", "--skip-column-names", "-e", "SELECT CURRENT_USER()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("nasty@localhost\n", "")


def test_a_backup_with_a_nasty_password(server: MariaDB, tmp_path: Path) -> None:
    done = dump(server.backup_account("nasty user", NASTY), tmp_path / "job")
    assert done.returncode == 0, done.stderr[-3:]
    assert ENGINE.confirmed(done.stderr)
    assert NASTY not in "\n".join(done.stderr)
    assert NASTY not in " ".join(ENGINE.dump_argv(done.request))


def test_the_operators_file_is_completed_and_overruled(server: MariaDB, tmp_path: Path) -> None:
    server.backup_account("fromfile", NASTY)
    path = tmp_path / "operator's own.cnf"
    account = Connection(defaults_file=str(path), user="fromfile", password=NASTY, socket=str(server.socket))
    in_file = replace(account, defaults_file="")
    path.write_text(ENGINE.option_file(in_file) + "[mysqld]\nuser=mysql\n")
    for connection in (
        Connection(defaults_file=str(path)),
        replace(server.backup_account(), defaults_file=str(path)),
    ):
        assert facts_of(connection).account == ("'fromfile'" if not connection.user else "'backup'") + "@'localhost'"
        assert dump(connection, tmp_path / "job").returncode == 0
    path.write_text("[client]\nuser=wrong\npassword=wrong\nhost=192.0.2.1\nport=1\nsocket=/nowhere\n")
    assert facts_of(account).account == "'fromfile'@'localhost'"
    assert dump(account, tmp_path / "job").returncode == 0


def test_localhost_with_a_port_is_the_network_for_the_tool_too(server: MariaDB, tmp_path: Path) -> None:
    server.query("CREATE OR REPLACE USER tcp@'127.0.0.1' IDENTIFIED BY 'p'")
    server.query(f"GRANT {', '.join(BACKUP_GRANTS)} ON *.* TO tcp@'127.0.0.1'")
    account = Connection(host="localhost", port=server.port, user="tcp", password="p")
    assert facts_of(account).account == "'tcp'@'127.0.0.1'"
    assert dump(account, tmp_path / "job").returncode == 0


def test_our_reader_agrees_with_the_clients(tmp_path: Path) -> None:
    # An escaped line break is left out: the program prints it as it is, and its lines could not be told apart.
    values = [value for value in PASSWORDS if r"\n" not in value]
    values += ["unquoted # comment", r"a\sb\tc\\d\qe", "'half", 'x"y', "'a' b", "it's # no comment", "#"]
    raw = [f"v{number} = {value}\n" for number, value in enumerate(values)]
    written = [line.replace("password", "w") for line in ENGINE.option_file(Connection(password=NASTY)).splitlines()]
    path = tmp_path / "client.cnf"
    path.write_text(
        "[mysqld]\nno=1\n[client] # ours\n; no=2\n# no=3\nflag\n" + "".join(raw) + "\n".join(written) + "\n"
    )
    done = subprocess.run(
        ["my_print_defaults", f"--defaults-file={path}", "client", "mariabackup"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    theirs = [line.removeprefix("--").partition("=")[::2] for line in done.stdout.splitlines()]
    assert list(client_options(path.read_text())) == theirs


# -- what runs by itself


def test_events_are_told_and_stopped(server: MariaDB) -> None:
    server.query("SET GLOBAL event_scheduler = ON")
    with connect(server.connection, timeout=TIMEOUT) as database:
        assert database.quiet() == ["the event scheduler"]
        assert database.set_quiet() == []
        assert server.value("SELECT @@event_scheduler") == "OFF"
        assert database.quiet() == []


def test_replication_is_told_and_stopped(server: MariaDB) -> None:
    for port, name in enumerate(("", "second"), start=1):
        server.query(f"CHANGE MASTER '{name}' TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='r'")
    server.query("START SLAVE")
    with connect(server.connection, timeout=TIMEOUT) as database:
        assert database.quiet() == ["replication"]
        server.query("START SLAVE 'second'")
        assert database.quiet() == ["replication", "replication second"]
        assert database.set_quiet() == []
        assert database.quiet() == []
    server.query("RESET SLAVE ALL")
    server.query("RESET SLAVE 'second' ALL")


def test_an_account_that_may_not_is_told_so(server: MariaDB) -> None:
    server.query("SET GLOBAL event_scheduler = ON")
    with connect(server.backup_account(), timeout=TIMEOUT) as database:
        assert database.quiet() == database.set_quiet() == ["the event scheduler"]
        server.query("CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=1, MASTER_USER='r'")
        server.query("START SLAVE")
        assert database.quiet() == database.set_quiet() == ["the event scheduler", "replication"]
    server.query("STOP SLAVE")
    server.query("RESET SLAVE ALL")
    server.query("SET GLOBAL event_scheduler = OFF")


# -- the tool's own files


def test_a_chain_of_the_real_tool(server: MariaDB, tmp_path: Path) -> None:
    account = server.backup_account()
    links: list[Path] = []
    ends: list[Lsn] = []
    for number in range(3):
        server.query("SET GLOBAL innodb_log_checkpoint_now = 1")
        done = dump(account, tmp_path / f"job{number}", since=ends[-1] if ends else None)
        found = ENGINE.facts(done.texts())
        assert found.checkpoints.begin == (ends[-1] if ends else 0)
        assert found.binlog is not None
        assert found.server_version == server.value("SELECT @@version")
        ends.append(found.checkpoints.end)
        links.append(extracted(done.stream, tmp_path / f"link{number}"))
        server.query(
            f"INSERT INTO shop.t SELECT seq FROM shop.seq_{10000 * (number + 1)}_to_{10000 * (number + 1) + 99}"
        )
    assert ends == sorted(set(ends))
    base = links[0]
    for link, end in zip(links, ends, strict=True):
        request = PrepareRequest(base, None if link == base else link, last=link == links[-1], use_memory=32 << 20)
        done_prepare = subprocess.run(ENGINE.prepare_argv(request), capture_output=True, timeout=60, check=False)
        assert done_prepare.returncode == 0
        assert ENGINE.confirmed(done_prepare.stderr.decode(errors="replace").splitlines())
        assert ENGINE.prepared_to(texts(base)) == end


def extracted(stream: bytes, target: Path) -> Path:
    target.mkdir()
    subprocess.run(["mbstream", "-x", "-C", str(target)], input=stream, timeout=60, check=True)
    return target


def test_the_version_of_the_installed_tool(server: MariaDB) -> None:
    done = subprocess.run(ENGINE.version_argv(), capture_output=True, text=True, timeout=30, check=True)
    assert facts_of(server.connection).version.series in done.stdout + done.stderr
