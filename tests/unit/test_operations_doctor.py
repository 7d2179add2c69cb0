"""The doctor: every check that can be made is made, and what is wrong comes with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guestagent.datadir import incarnation
from guestagent.keys import KeyRing, KeySettings
from guestagent.keys.file import generate
from guestagent.model import InstanceId
from guestagent.operations.doctor import Finding, doctor
from tests.fakes.bench import INSTANCE, SECRET, Bench
from tests.fakes.stores import Refuses

ALL = ["instance", "state", "server", "engine", "grants", "tool", "datadir", "lineage", "disk", "store", "key"]


def findings(bench: Bench) -> dict[str, Finding]:
    before = bench.objects(), list(bench.state.glob("*/*"))
    found = doctor(bench.host())
    assert (bench.objects(), list(bench.state.glob("*/*"))) == before
    assert SECRET not in str(found)
    return {finding.check: finding for finding in found}


def wrong(bench: Bench) -> dict[str, str]:
    return {name: f"{finding.detail}; {finding.remedy}" for name, finding in findings(bench).items() if not finding.ok}


def test_a_host_on_which_all_is_well(bench: Bench) -> None:
    found = findings(bench)
    assert list(found) == ALL
    assert all(finding.ok and not finding.remedy for finding in found.values())
    details = {name: finding.detail for name, finding in found.items()}
    assert details.pop("disk").endswith(" bytes free where the datadir is")
    assert details == {
        "instance": "guest_id is guest1",
        "state": f"{bench.state} is writable",
        "server": f"mariadb 10.11.19-MariaDB-log on {bench.datadir}",
        "engine": "mariabackup",
        "grants": "'backup'@'localhost' may take backups",
        "tool": "mariabackup 10.11.19",
        "datadir": f"{bench.datadir} is readable",
        "lineage": "no backup of this server yet: the next one must be a full",
        "store": f"file://{bench.store}: put, get, list and delete work",
        "key": "none is configured: new backups are not encrypted",
    }


def test_the_lineage_of_a_server_that_was_restored(bench: Bench) -> None:
    full = bench.backup()
    own = incarnation.read(bench.datadir)
    assert own is not None
    assert findings(bench)["lineage"].detail == f"incarnation {own.id}, 1 backups on its history"
    bench.restore(full, replace=True)
    assert f", restored from {full.id}, 1 backups" in findings(bench)["lineage"].detail


def test_a_server_that_is_down_keeps_no_other_check_from_being_made(bench: Bench) -> None:
    bench.server.halt()
    assert list(findings(bench)) == ["instance", "state", "server", "store", "key"]
    assert wrong(bench) == {"server": "cannot reach the server; "}


def test_an_engine_that_does_not_fit_the_server(mysql: Bench) -> None:
    found = {finding.check: finding for finding in doctor(mysql.host(engine="mariabackup"))}
    assert not found["engine"].ok
    assert found["engine"].remedy == "set engine = auto"
    assert list(found) == ["instance", "state", "server", "engine", "store", "key"]


def no_grants(bench: Bench) -> None:
    bench.server.grants = frozenset()


def no_state(bench: Bench) -> None:
    bench.state.write_text("in the way")


def other_tool(bench: Bench) -> None:
    bench.tool(VERSION="10.6.1-MariaDB")


def damaged(bench: Bench) -> None:
    (bench.datadir / incarnation.FILE).write_text("?")


def copied(bench: Bench) -> None:
    incarnation.write(bench.datadir, incarnation.fresh(InstanceId("guest9")))


def store_down(bench: Bench) -> None:
    bench.wrap = lambda inner: Refuses(inner, "put")


def far_away(bench: Bench) -> None:
    bench.server.always_answers = True
    bench.server.datadir = Path("/nowhere/data")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            no_grants,
            {"grants": "lacks RELOAD, PROCESS, BINLOG MONITOR; GRANT RELOAD, PROCESS, BINLOG"},
        ),
        (no_state, {"state": "cannot write to state_dir"}),
        (other_tool, {"tool": "is of another series than the server's 10.11.19; install mariabackup 10.11"}),
        (damaged, {"lineage": "is damaged"}),
        (copied, {}),
        (store_down, {"store": "503 slow down; wait"}),
        (far_away, {"datadir": "datadir /nowhere/data is not ours to read", "disk": "cannot look at /nowhere/data"}),
    ],
)
def test_what_is_wrong_comes_with_its_remedy(
    bench: Bench, spoil: Callable[[Bench], None], expected: dict[str, str]
) -> None:
    spoil(bench)
    found = wrong(bench)
    assert found.keys() == expected.keys()
    assert all(text in found[name] for name, text in expected.items())


def test_a_host_without_an_id(bench: Bench) -> None:
    bench.instance = None
    found = wrong(bench)
    assert set(found) == {"instance", "store"}
    assert found["instance"] == "guest_id is not set; set it under [DEFAULT] to the id of this instance"
    bench.instance = INSTANCE
    assert wrong(bench) == {}


class Forgetful:
    """A key that opens something, but not what it wrapped."""

    id = "file:0"

    def wrap(self, data_key: bytes, context: object) -> bytes:
        return data_key

    def unwrap(self, wrapped: bytes, context: object) -> bytes:
        return bytes(len(wrapped))


class Ring(KeyRing):
    current = Forgetful()


def test_keys_are_tried(bench: Bench) -> None:
    new, old = bench.top / "new.key", bench.top / "old.key"
    identity = generate(new)
    generate(old)
    found = {one.check: one for one in doctor(bench.host(keys=KeyRing(KeySettings(key_file=new))))}["key"]
    assert (found.ok, found.detail) == (True, f"new backups are encrypted with {identity}")
    settings = KeySettings(key_file=new, old_key_files=(old,))
    found = {one.check: one for one in doctor(bench.host(keys=KeyRing(settings)))}["key"]
    assert found.detail.endswith(f"{identity}, 1 old keys are at hand")
    new.chmod(0o644)
    found = {one.check: one for one in doctor(bench.host(keys=KeyRing(settings)))}["key"]
    assert not found.ok
    assert found.remedy.startswith(f"chmod 600 {new}")


def test_a_key_that_does_not_open_what_it_wraps(bench: Bench) -> None:
    found = {one.check: one for one in doctor(bench.host(keys=Ring()))}["key"]
    assert (found.ok, found.detail) == (False, "key file:0 does not give back what it wrapped")
