"""The checkpoint before a dump: when it is wanted, whether it may be, and that nobody waits for it for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from guestagent.errors import Cancelled, DatabaseError, GuestagentError, Refused
from guestagent.operations import checkpoint
from guestagent.operations.doctor import Finding, doctor
from guestagent.progress import Cancel, Watch
from guestagent.streams import crew
from tests.fakes.bench import PATIENCE, Bench, Told, settled, when

LEAST = frozenset({"RELOAD", "PROCESS", "BINLOG MONITOR"})
Unchanged = Callable[[], Callable[[], None]]


@pytest.mark.parametrize(
    ("option", "made"), [("never", (False, False)), ("incremental", (False, True)), ("always", (True, True))]
)
def test_it_is_made_right_before_the_dumps_that_it_is_wanted_for(
    bench: Bench, option: str, made: tuple[bool, bool]
) -> None:
    parent = None
    for expected in made:
        told = Told()
        before = len(bench.server.checkpoints)
        parent = bench.backup(parent, watch=Watch(told), checkpoint_first=option)
        assert (len(bench.server.checkpoints) > before) is expected
        names = [name for name, _ in told.phases]
        assert names == ["preflight", *(["checkpoint"] if expected else []), "dump", "publish"]


def no_super(bench: Bench) -> None:
    bench.server.grants = LEAST


def too_old(bench: Bench) -> None:
    bench.server.makes_checkpoints = False


INSTEAD = "or set [database] checkpoint_first = never"


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (
            no_super,
            DatabaseError,
            "'backup'@'localhost' lacks SUPER, which a checkpoint before a backup takes; "
            f"GRANT SUPER ON *.* TO 'backup'@'localhost', {INSTEAD}",
        ),
        (
            too_old,
            Refused,
            f"server 10.11.19-MariaDB-log makes no checkpoint on demand; upgrade the server, {INSTEAD}",
        ),
    ],
)
def test_what_keeps_it_from_being_made_is_refused_beforehand(
    bench: Bench,
    unchanged: Unchanged,
    spoil: Callable[[Bench], None],
    kind: type[GuestagentError],
    words: str,
) -> None:
    full = bench.backup()
    spoil(bench)
    check, runs = unchanged(), len(bench.runs("backup"))
    with pytest.raises(GuestagentError) as why:
        bench.backup(full, checkpoint_first="incremental")
    check()
    assert (type(why.value), str(why.value)) == (kind, words)
    assert (len(bench.runs("backup")), bench.server.checkpoints) == (runs, [])
    found = {one.check: one for one in doctor_of(bench, "incremental")}["grants"]
    assert (found.ok, f"{found.detail}; {found.remedy}") == (False, words)
    bench.backup(checkpoint_first="incremental")  # a full is taken without
    assert all(one.ok for one in doctor_of(bench, "never") if one.check == "grants")


def test_super_and_all_are_enough(bench: Bench) -> None:
    for grants in (LEAST | {"SUPER"}, frozenset({"ALL PRIVILEGES"})):
        bench.server.grants = frozenset(grants)
        bench.backup(checkpoint_first="always")
        assert {one.check: one.ok for one in doctor_of(bench, "always")}["grants"]
    assert len(bench.server.checkpoints) == 2


def test_mysql_makes_none(mysql: Bench) -> None:
    with pytest.raises(Refused) as why:
        mysql.backup(checkpoint_first="always")
    assert str(why.value) == (
        "a server of mysql makes no checkpoint on demand; set [database] checkpoint_first = never"
    )


def doctor_of(bench: Bench, option: str) -> list[Finding]:
    return doctor(bench.host(checkpoint_first=option), lambda _: None)


def test_a_server_that_fails_at_it_fails_the_backup(bench: Bench, unchanged: Unchanged) -> None:
    def fails() -> None:
        raise DatabaseError("the server went away")

    bench.server.at_checkpoint = fails
    check = unchanged()
    with pytest.raises(DatabaseError, match="the server went away"):
        bench.backup(checkpoint_first="always")
    check()


def test_a_checkpoint_without_end_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.2)

    def endless() -> None:
        time.sleep(0.3)
        raise DatabaseError("the server went away while SET GLOBAL innodb_log_checkpoint_now = 1")

    bench.server.at_checkpoint = endless
    bench.backup(checkpoint_first="always")
    assert "the server is still busy with its checkpoint after 0.2 s; the dump begins without" in caplog.text


def test_a_cancel_does_not_wait_for_it(bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", 0.2)
    release, cancel = threading.Event(), Cancel()
    bench.server.at_checkpoint = lambda: release.wait(PATIENCE)
    when(lambda: bool(bench.server.checkpoints), lambda: cancel.set("the test says so"))
    check, begin = unchanged(), time.monotonic()
    with pytest.raises(Cancelled, match="the test says so"):
        bench.backup(checkpoint_first="always", watch=Watch(cancel=cancel))
    assert time.monotonic() - begin < PATIENCE / 2
    release.set()
    settled()
    check()
