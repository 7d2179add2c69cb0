"""The swap and our traces in a datadir, seen by a real MariaDB, its clients and its backup tool."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guestagent.datadir import blocker, incarnation, layout, place, staging, swap
from guestagent.errors import Refused
from guestagent.model import InstanceId
from tests.servers.mariadb import MariaDB, give_to_server, server_user, workplace

Content = dict[str, int | str]

PATIENCE = 120
STARTS = (
    (),
    ("--innodb-force-recovery=6",),
    ("--skip-innodb", "--default-storage-engine=Aria"),
    ("--innodb-read-only",),
)
GUEST = InstanceId("guest1")


def fill(server: MariaDB, word: str) -> None:
    server.query(f"CREATE DATABASE {word}")
    server.query("CREATE DATABASE IF NOT EXISTS both_have")
    for engine in ("InnoDB", "Aria", "MyISAM"):
        table = f"both_have.{engine.lower()}_table"
        server.query(f"CREATE TABLE {table} (id INT PRIMARY KEY, word VARCHAR(40)) ENGINE={engine}")
        server.query(f"INSERT INTO {table} SELECT seq, CONCAT(%s, seq) FROM both_have.seq_1_to_2000", word)
    server.query(f"CREATE TABLE {word}.`odd \u00e9 name` (id INT PRIMARY KEY)")
    server.query(f"CREATE VIEW {word}.v AS SELECT * FROM both_have.innodb_table")


def back_up(server: MariaDB, stream: Path, *, user: str = "") -> None:
    """A full backup, as root or as ``user``."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    scratch = stream.with_name(f"scratch{user}")
    scratch.mkdir()
    give_to_server(scratch)
    tool = ["mariabackup", "--no-defaults", "--backup", "--stream=mbstream", f"--target-dir={scratch}"]
    to = [f"--socket={server.socket}", "--user=root", f"--datadir={server.datadir}"]
    with stream.open("wb") as out:
        run([*become, *tool, *to], stdout=out)


def run(argv: list[str], *, stdout: object = subprocess.PIPE) -> None:
    done = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]


def copy(source: Path, target: Path) -> None:
    run(["cp", "-a", "--reflink=auto", str(source), str(target)])


@dataclass(frozen=True)
class Pair:
    """A stopped (or killed) server's datadir and a prepared backup of another, with what each holds."""

    old: Path
    new: Path
    old_content: Content
    new_content: Content


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with workplace() as home, MariaDB() as first, MariaDB() as second:
        fill(first, "alpha")
        fill(second, "omega")
        contents = first.content(), second.content()
        back_up(second, home / "stream")
        (home / "new").mkdir()
        with (home / "stream").open("rb") as stream:
            subprocess.run(["mbstream", "-x", "-C", str(home / "new")], stdin=stream, timeout=PATIENCE, check=True)
        prepare = ["mariabackup", f"--defaults-file={home / 'new' / 'backup-my.cnf'}", "--prepare"]
        run([*prepare, f"--target-dir={home / 'new'}"])
        first.kill()  # so that the old data need the recovery that a refused start must not begin
        copy(first.datadir, home / "old")
        yield Pair(home / "old", home / "new", *contents)


@contextmanager
def staged(pair: Pair, datadir: Path | None = None) -> Iterator[tuple[MariaDB, staging.Staging]]:
    """A server that is down, on the old data, and the new data in its staging."""
    with workplace() as home, MariaDB(datadir=datadir or home / "data", running=False) as server:
        if datadir is None:
            copy(pair.old, server.datadir)
        opened = staging.open_staging(server.datadir)
        opened.base.rmdir()
        copy(pair.new, opened.base)
        incarnation.write(opened.base, incarnation.fresh(GUEST))
        place.own(opened.base, user=server_user())
        place.make_durable(opened.base)
        yield server, opened


def refuses_to_start(server: MariaDB, *options: str) -> bool:
    done = subprocess.run(
        server.argv(*options), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
    )
    return done.returncode == 1 and b"aria control file" in done.stderr


def check_swapped(server: MariaDB, pair: Pair, *options: str) -> None:
    server.start(*options)
    assert server.content() == pair.new_content
    server.stop()


def test_no_server_starts_in_any_state_of_a_swap_and_none_does_harm(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One swap, and at every one of its steps a start in one of several ways."""
    with staged(pair) as (server, opened):
        attempts = 0
        ways = itertools.cycle(STARTS)
        seen: list[list[str]] = []

        def attempt() -> None:
            nonlocal attempts
            state = sorted(os.listdir(server.datadir))
            if blocker.is_one(server.datadir / "aria_log_control") and state not in seen:
                seen.append(state)
                attempts += 1
                assert refuses_to_start(server, *next(ways)), state
                seen.append(sorted(os.listdir(server.datadir)))

        for name in ("rename", "mkdir", "unlink"):
            monkeypatch.setattr(os, name, preceded_by(attempt, getattr(os, name)))
        kept = swap.swap(server.datadir, incoming=opened.base, keep_as="before")
        monkeypatch.undo()
        assert kept is not None
        assert attempts > len(os.listdir(pair.old)) / 2 + len(os.listdir(pair.new)) / 2
        check_swapped(server, pair)
        swap.put_back(server.datadir, kept)
        assert not layout.ours(server.datadir).exists()
        server.start()
        assert server.content() == pair.old_content


def preceded_by(first: Callable[[], None], call: Callable[..., object]) -> Callable[..., object]:
    def both(*arguments: object, **options: object) -> object:
        first()
        return call(*arguments, **options)

    return both


def killed_at_move(number: int, datadir: Path, work: Callable[[], object]) -> None:
    """Do ``work`` in a process that SIGKILL ends before its ``number``th rename in or out of ``datadir``."""
    pid = os.fork()
    if pid == 0:
        moves = itertools.count(1)
        rename = os.rename

        def counted(source: Path, target: Path) -> None:
            if datadir in (source.parent, target.parent) and next(moves) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.rename = counted  # type: ignore[assignment]
        try:
            work()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("moment", ["blocking", "out", "in", "last"])
def test_after_a_kill_and_a_refused_start_recovery_gives_exactly_one_side(pair: Pair, moment: str) -> None:
    with staged(pair) as (server, opened):
        out, total = len(layout.entries(server.datadir)), len(layout.entries(opened.base))
        number = {"blocking": 2, "out": 2 + out // 2, "in": out + total // 2, "last": out + total}[moment]
        killed_at_move(
            number, server.datadir, lambda: swap.swap(server.datadir, incoming=opened.base, keep_as="before")
        )
        for options in STARTS:
            assert refuses_to_start(server, *options)
        said = swap.recover(server.datadir) or ""
        assert ("undid" in said) is (moment == "blocking")
        assert swap.recover(server.datadir) is None
        if moment == "blocking":
            server.start()
            assert server.content() == pair.old_content
            return
        if moment != "last":  # by then InnoDB has been let in, and has recovered
            assert_equal_trees(server.datadir, pair.new)
        check_swapped(server, pair)
        [kept] = swap.kept(server.datadir)
        assert_equal_trees(kept, pair.old)
        swap.forget(server.datadir, kept)
        assert not layout.ours(server.datadir).exists()
        check_swapped(server, pair)


def assert_equal_trees(one: Path, other: Path) -> None:
    exclude = [f"--exclude={layout.OURS}", f"--exclude={incarnation.FILE}"]
    run(["diff", "--recursive", "--no-dereference", *exclude, str(one), str(other)])


def test_a_running_server_is_seen_asked_nothing_and_never_swapped(pair: Pair) -> None:
    with MariaDB() as server:
        assert place.look(server.datadir).server_running
        server.query("CREATE TABLE mysql.still_alive (a INT) ENGINE=Aria")
        opened = staging.open_staging(server.datadir)
        (opened.base / "ibdata1").write_text("new")
        with pytest.raises(Refused, match="a server runs on"):
            swap.swap(server.datadir, incoming=opened.base, keep_as="before")
        opened.discard()
        server.restart()
        assert place.look(server.datadir).server_running
        server.kill()
        found = place.look(server.datadir)
        assert not found.server_running
        assert found.looks_like_datadir


def test_a_mount_point_is_swapped_in_place(pair: Pair) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    with workplace() as home:
        datadir = home / "data"
        datadir.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=400m,mode=0700", "tmpfs", str(datadir)]
        if subprocess.run(mount, capture_output=True, timeout=PATIENCE, check=False).returncode:
            pytest.skip("this machine lets nobody mount")
        try:
            run(["cp", "-a", f"{pair.old}/.", str(datadir)])
            (datadir / "lost+found").mkdir()
            assert place.look(datadir).is_mount
            with staged(pair, datadir) as (server, opened):
                kept = swap.swap(datadir, incoming=opened.base, keep_as="before")
                assert kept is not None
                check_swapped(server, pair, "--ignore-db-dirs=lost+found")
                swap.forget(datadir, kept)
            assert (datadir / "lost+found").is_dir()
        finally:
            run(["umount", str(datadir)])


def test_a_datadir_that_is_made_for_the_restore_belongs_to_the_server(pair: Pair) -> None:
    with workplace() as home:
        datadir = home / "not" / "yet"
        with staged(pair, datadir) as (server, opened):
            assert swap.swap(datadir, incoming=opened.base, keep_as="before") is None
            opened.discard()
            assert not layout.ours(datadir).exists()
            assert datadir.owner() == server_user()
            check_swapped(server, pair)


def test_neither_clients_nor_the_backup_tool_see_what_is_ours(pair: Pair) -> None:
    """With old data kept and a restore under way, both full of tablespaces that the server has, too."""
    with workplace() as home, MariaDB() as server:
        fill(server, "alpha")
        incarnation.write(server.datadir, incarnation.fresh(GUEST))
        opened = staging.open_staging(server.datadir)
        copy(pair.old, opened.base / "deep")
        copy(pair.old, layout.ours(server.datadir) / ".old-before")
        opened.link(1)
        give_to_server(layout.ours(server.datadir))
        for restarted in (False, True):
            if restarted:
                server.restart()
            schemas = {row[0] for row in server.query("SHOW DATABASES")}
            assert schemas == {"alpha", "both_have", "information_schema", "mysql", "performance_schema", "sys"}
            assert {row[0] for row in server.query("SELECT schema_name FROM information_schema.schemata")} == schemas
            to = ["--no-defaults", f"--socket={server.socket}", "--user=root"]
            for client in (["mariadb-dump", *to, "--all-databases"], ["mariadb-check", *to, "--all-databases"]):
                run(client, stdout=subprocess.DEVNULL)
        for user in ["", server_user()] if os.geteuid() == 0 else [""]:
            back_up(server, home / f"stream{user}", user=user)
            names = names_in(home / f"stream{user}", home / f"out{user}")
            assert "both_have/innodb_table.ibd" in names
            assert not [name for name in names if "guestagent" in name or "#sql" in name]
            assert b"guestagent" not in (home / f"stream{user}").read_bytes()
        assert incarnation.read(server.datadir) is not None
        assert opened.base.is_dir()


def names_in(stream: Path, target: Path) -> list[str]:
    target.mkdir()
    with stream.open("rb") as source:
        subprocess.run(["mbstream", "-x", "-C", str(target)], stdin=source, timeout=PATIENCE, check=True)
    return [str(path.relative_to(target)) for path in target.rglob("*")]
