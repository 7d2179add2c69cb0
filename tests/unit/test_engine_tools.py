"""The two engines: argv, grants, and the fakes on PATH that obey only what the real tools would."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from guestagent.engines import Connection, DumpRequest, Engine, PrepareRequest, Stage, engine_for, engine_named
from guestagent.errors import ConfigError, NotFound
from guestagent.model import Lsn, ServerFacts, Version

FAKES = Path(__file__).parents[1] / "fakes"
NAMES = ("mariabackup", "xtrabackup")

SERVER = ServerFacts(
    datastore="mariadb",
    version=Version(10, 11, 19),
    version_text="10.11.19-MariaDB",
    datadir=Path("/var/lib/mysql"),
    lsn=Lsn(1),
    grants=frozenset(),
    account="'backup'@'localhost'",
)


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_named(request.param)


def dump_request(tmp_path: Path, since: int | None = None) -> DumpRequest:
    option_file = tmp_path / "client.cnf"
    option_file.write_text("[client]\n")
    return DumpRequest(option_file, tmp_path / "dump", tmp_path / "facts", None if since is None else Lsn(since))


def run(argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        argv, env={"PATH": f"{FAKES}:{os.environ['PATH']}"}, capture_output=True, timeout=30, check=False
    )


@pytest.mark.parametrize(("datastore", "name"), [("mariadb", "mariabackup"), ("mysql", "xtrabackup")])
def test_the_engine_of_a_server(datastore: str, name: str) -> None:
    found = engine_for(replace(SERVER, datastore=datastore))
    assert (found.name, found.tool, found.datastore) == (name, name, datastore)
    assert engine_named(name).stream_format == {"mariabackup": "mbstream", "xtrabackup": "xbstream"}[name]


def test_a_server_without_an_engine() -> None:
    with pytest.raises(ConfigError, match="no engine for a server of 'postgresql'"):
        engine_for(replace(SERVER, datastore="postgresql"))


def test_an_engine_that_nobody_knows() -> None:
    with pytest.raises(NotFound, match="no engine 'mydumper'; there are mariabackup, xtrabackup"):
        engine_named("mydumper")


@pytest.mark.parametrize("privilege", ["BINLOG MONITOR", "REPLICATION CLIENT", "SUPER"])
def test_grants_that_suffice_for_mariabackup(privilege: str) -> None:
    engine = engine_named("mariabackup")
    assert engine.missing_grants(replace(SERVER, grants=frozenset({"RELOAD", "PROCESS", privilege}))) == ()


@pytest.mark.parametrize(
    ("version", "grants", "missing"),
    [
        ((10, 11, 19), [], ("RELOAD", "PROCESS", "BINLOG MONITOR")),
        ((10, 4, 34), [], ("RELOAD", "PROCESS", "REPLICATION CLIENT")),
        ((11, 8, 2), ["SUPER"], ("RELOAD", "PROCESS")),
        ((10, 11, 19), ["PROCESS", "BINLOG MONITOR"], ("RELOAD",)),
        ((10, 11, 19), ["RELOAD", "SELECT"], ("PROCESS", "BINLOG MONITOR")),
    ],
)
def test_grants_that_mariabackup_lacks(
    version: tuple[int, int, int], grants: list[str], missing: tuple[str, ...]
) -> None:
    server = replace(SERVER, version=Version(*version), grants=frozenset(grants))
    assert engine_named("mariabackup").missing_grants(server) == missing


def test_grants_that_xtrabackup_lacks() -> None:
    server = replace(SERVER, datastore="mysql", grants=frozenset({"RELOAD", "SUPER", "LOCK TABLES"}))
    engine = engine_named("xtrabackup")
    assert engine.missing_grants(server) == ("BACKUP_ADMIN", "PROCESS", "REPLICATION CLIENT")
    complete = server.grants | {"BACKUP_ADMIN", "PROCESS", "REPLICATION CLIENT"}
    assert engine.missing_grants(replace(server, grants=complete)) == ()


def test_all_privileges_are_enough(engine: Engine) -> None:
    assert engine.missing_grants(replace(SERVER, grants=frozenset({"ALL PRIVILEGES"}))) == ()


def test_a_full_of_mariabackup_in_full() -> None:
    request = DumpRequest(Path("/o"), Path("/t"), Path("/f"), None, parallel=2)
    assert engine_named("mariabackup").dump_argv(request) == [
        "mariabackup",
        "--defaults-file=/o",
        "--backup",
        "--stream=mbstream",
        "--target-dir=/t",
        "--extra-lsndir=/f",
        "--parallel=2",
        "--log-copy-interval=100",
    ]


def test_another_interval_for_the_redo_log_is_obeyed() -> None:
    """The tool obeys the last of several."""
    request = DumpRequest(Path("/o"), Path("/t"), Path("/f"), None, extra_args=("--log-copy-interval=500",))
    argv = engine_named("mariabackup").dump_argv(request)
    assert argv.index("--log-copy-interval=100") < argv.index("--log-copy-interval=500")


def test_an_incremental_with_everything(engine: Engine) -> None:
    request = DumpRequest(
        Path("/o"), Path("/t"), Path("/f"), Lsn(0), lock_wait_timeout=60, extra_args=("--throttle=9",)
    )
    argv = engine.dump_argv(request)
    assert argv[1] == "--defaults-file=/o"
    assert "--incremental-lsn=0" in argv
    assert argv[-1] == "--throttle=9"
    xtrabackup_only = {f"--{lock}-timeout=60" for lock in ("ftwrl-wait", "lock-ddl", "backup-lock")}
    xtrabackup_only.add("--no-version-check")
    assert xtrabackup_only & set(argv) == (xtrabackup_only if engine.name == "xtrabackup" else set())


def test_waiting_without_end_is_the_tools_default(engine: Engine) -> None:
    argv = engine.dump_argv(DumpRequest(Path("/o"), Path("/t"), Path("/f"), None))
    assert not [argument for argument in argv if "timeout" in argument]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("incremental", [None, Path("/i")])
def test_prepare(engine: Engine, last: bool, incremental: Path | None) -> None:
    argv = engine.prepare_argv(PrepareRequest(Path("/b"), incremental, last=last, use_memory=1 << 30))
    assert argv[:5] == [
        engine.tool,
        "--defaults-file=/b/backup-my.cnf",
        "--prepare",
        "--target-dir=/b",
        "--use-memory=1073741824",
    ]
    assert ("--incremental-dir=/i" in argv) is (incremental is not None)
    assert ("--apply-log-only" in argv) is (engine.name == "xtrabackup" and not last)


OLD, NEW = "[00] 2026-11-23 06:19:15 ", "2026-11-23T06:19:15.000001-00:00 0 [Note] [MY-011825] [Xtrabackup] "


@pytest.mark.parametrize(
    ("tool", "line", "stage"),
    [
        ("mariabackup", f"{OLD}Starting BACKUP STAGE START", Stage.WAITING),
        ("mariabackup", f"{OLD}Acquiring BACKUP LOCKS...", Stage.WAITING),
        ("mariabackup", f"{OLD}Acquired locks for BACKUP STAGE START", Stage.COPYING),
        ("mariabackup", f"{OLD}Finished BACKUP STAGE START", None),
        ("mariabackup", f"{OLD}Starting BACKUP STAGE FLUSH", Stage.WAITING),
        ("mariabackup", f"{OLD}Acquired locks for BACKUP STAGE FLUSH", Stage.COPYING),
        ("mariabackup", f"{OLD}Started BACKUP STAGE BLOCK_DDL", Stage.WAITING),
        ("mariabackup", f"{OLD}Acquired locks for BACKUP STAGE BLOCK_DDL", Stage.COPYING),
        ("mariabackup", f"{OLD}Starting BACKUP STAGE BLOCK_COMMIT", Stage.WAITING),
        ("mariabackup", f"{OLD}Acquired locks for BACKUP STAGE BLOCK_COMMIT", Stage.BLOCKING),
        ("mariabackup", f"{OLD}Waiting for log copy thread to read lsn 46687", None),
        ("mariabackup", f"{OLD}Finishing BACKUP STAGE BLOCK_COMMIT", None),
        ("mariabackup", f"{OLD}Starting BACKUP STAGE END", None),
        ("mariabackup", f"{OLD}All tables unlocked", Stage.COPYING),
        ("mariabackup", "[01] Streaming ./d/All@0020tables@0020unlocked.ibd", None),
        ("mariabackup", "", None),
        ("xtrabackup", f"{NEW}Executing FLUSH NO_WRITE_TO_BINLOG TABLES...", None),
        ("xtrabackup", f"{NEW}Executing FLUSH TABLES WITH READ LOCK...", Stage.BLOCKING),
        ("xtrabackup", "180122 19:47:54 Executing FLUSH TABLES WITH READ LOCK...", Stage.BLOCKING),
        ("xtrabackup", f"{NEW}Executing LOCK BINLOG FOR BACKUP...", Stage.BLOCKING),
        ("xtrabackup", f"{NEW}Executing FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS...", None),
        ("xtrabackup", f"{NEW}Executing UNLOCK BINLOG", Stage.COPYING),
        ("xtrabackup", f"{NEW}Executing UNLOCK TABLES", None),
        ("xtrabackup", f"{NEW}All tables unlocked", Stage.COPYING),
    ],
)
def test_what_a_line_tells_of_locks(tool: str, line: str, stage: Stage | None) -> None:
    assert engine_named(tool).stage(line) is stage


def test_the_option_file_has_the_tools_group(engine: Engine) -> None:
    assert f"\n[{engine.tool}]\n" in engine.option_file(Connection(user="backup"))


def test_the_version(engine: Engine) -> None:
    done = run(engine.version_argv())
    assert done.returncode == 0
    assert str(Version.parse((done.stdout + done.stderr).decode())) in ("10.11.19", "8.0.35")


def test_a_chain_through_the_fake(engine: Engine, tmp_path: Path) -> None:
    """Every argument that the engines make is one that the tools know, and what they write is understood."""
    full = run(engine.dump_argv(replace(dump_request(tmp_path), parallel=2, lock_wait_timeout=5)))
    assert full.returncode == 0, full.stderr
    assert engine.confirmed(full.stderr.decode().splitlines())
    first = engine.facts(texts(tmp_path / "facts"))
    later = run(engine.dump_argv(dump_request(tmp_path, first.checkpoints.end)))
    second = engine.facts(texts(tmp_path / "facts"))
    assert second.checkpoints.begin == first.checkpoints.end < second.checkpoints.end
    base, link = unpacked(full.stdout, tmp_path / "base"), unpacked(later.stdout, tmp_path / "link")
    for request, end in (
        (PrepareRequest(base, None, last=False, use_memory=1 << 20), first.checkpoints.end),
        (PrepareRequest(base, link, last=True, use_memory=1 << 20), second.checkpoints.end),
    ):
        done = run(engine.prepare_argv(request))
        assert done.returncode == 0, done.stderr
        assert engine.prepared_to(texts(base)) == end


def test_the_fake_refuses_what_the_real_tools_would(engine: Engine, tmp_path: Path) -> None:
    base = unpacked(run(engine.dump_argv(dump_request(tmp_path))).stdout, tmp_path / "base")
    link = unpacked(run(engine.dump_argv(dump_request(tmp_path, 5))).stdout, tmp_path / "link")
    unprepared = run(engine.prepare_argv(PrepareRequest(base, link, last=True, use_memory=1)))
    assert unprepared.returncode == 1
    assert run(engine.prepare_argv(PrepareRequest(base, None, last=False, use_memory=1))).returncode == 0
    unfit = run(engine.prepare_argv(PrepareRequest(base, link, last=True, use_memory=1)))
    assert unfit.returncode == 1
    assert b"not to be proper for the target" in unfit.stderr
    assert run([engine.tool, "--backup", "--defaults-file=/dev/null"]).returncode == 1
    assert run([engine.tool, "--no-defaults", "--backup", "--no-such-option"]).returncode != 0


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(errors="replace") for path in directory.iterdir() if path.is_file()}


def unpacked(stream: bytes, target: Path) -> Path:
    """The small text files at the top of a stream, and deltas as empty files: what a prepare looks at."""
    target.mkdir()
    position = 0
    while position < len(stream):
        kind, length = (
            stream[position + 9 : position + 10],
            int.from_bytes(stream[position + 10 : position + 14], "little"),
        )
        name, position = stream[position + 14 : position + 14 + length].decode(), position + 14 + length
        if kind == b"E":
            continue
        entries = int.from_bytes(stream[position : position + 4], "little") if kind == b"S" else 0
        position += 4 if kind == b"S" else 0
        size = int.from_bytes(stream[position : position + 8], "little")
        position += 20 + 8 * entries
        if "/" not in name:
            (target / name).write_bytes(stream[position : position + size])
        position += size
    return target


WORDS = (
    "[00] FATAL ERROR: 2026-11-23 03:53:55 Failed to validate first page of the file beside/t1, error 61",
    "2026-11-23  3:53:55 0 [ERROR] InnoDB: File ./beside/t1.ibd was not found",
)
"""How 10.11.19 ended where a table was dropped as the tool listed them."""


def test_bad_luck_is_known_by_its_words(engine: Engine) -> None:
    assert engine.unlucky(WORDS) is (engine.name == "mariabackup")
    assert not engine.unlucky(WORDS[1:])
