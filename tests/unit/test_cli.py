"""The commands, in process where their words matter, and as processes where signals and streams do."""

from __future__ import annotations

import csv
import fcntl
import importlib
import io
import json
import logging
import os
import pty
import pwd
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.catalog import Catalog
from guestagent.cli import COMMANDS, main
from guestagent.jobs.lock import only_job
from guestagent.manifest import Backup, Manifest, Parent, Segment, StreamFacts, digest
from guestagent.model import Binlog, Checkpoints, Kind, Lsn, backup_id, instance_id
from guestagent.storage import open_storage

YAML: Any = importlib.import_module("yaml")  # cliff brings it, and it brings no types
FAKES = Path(__file__).parents[1] / "fakes"
PATIENCE = 90
NOBODY = "99999999-9999-4999-8999-999999999999"
BEGUN = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
STREAM = b"".join(
    [
        b"XBSTCK01\0P" + struct.pack("<I", 7) + b"ibdata1",
        struct.pack("<QQI", 4096, 0, zlib.crc32(b"x" * 4096)) + b"x" * 4096,
        b"XBSTCK01\0E" + struct.pack("<I", 7) + b"ibdata1",
    ]
)
PROPERTIES = [
    "created",
    "description",
    "id",
    "instance_id",
    "locationRef",
    "name",
    "parent_id",
    "size",
    "status",
    "updated",
    "type",
    "checksum",
    "datastore",
    "datastore_version",
    "from_lsn",
    "to_lsn",
    "stored_size",
    "raw_size",
    "binlog",
    "gtid",
    "duration",
    "note",
]
LISTED = ["id", "name", "type", "status", "parent_id", "size", "updated", "instance_id"]


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Desk:
    """A configuration, its store, and the commands typed over it."""

    place: Path
    capture: pytest.CaptureFixture[str]

    @property
    def config(self) -> Path:
        return self.place / "guestagent.conf"

    @property
    def url(self) -> str:
        return f"file://{self.place}/store"

    def configure(self, **more: str) -> None:
        """Write the configuration; ``more`` are lines by section."""
        sections = {
            "DEFAULT": f"guest_id = guest1\nstate_dir = {self.place}/state\n",
            "database": f"socket = {self.place}/no-server\nos_user = {pwd.getpwuid(os.geteuid()).pw_name}\n",
            "storage": f"url = {self.url}\n",
        }
        for name, lines in more.items():
            sections[name] = sections.get(name, "") + lines + "\n"
        self.config.write_text("".join(f"[{name}]\n{lines}" for name, lines in sections.items()))
        self.config.chmod(0o600)

    def type(self, *words: str) -> Done:
        """Run a command in this process."""
        return self.bare("--config-file", str(self.config), *words)

    def bare(self, *words: str) -> Done:
        """Run a command of which nothing is known beforehand."""
        self.capture.readouterr()
        status = main(words)
        return Done(status, *self.capture.readouterr())

    def argv(self, *words: str) -> list[str]:
        """The command's words for a process of its own, in which no signal is ignored."""
        command = [sys.executable, "-m", "guestagent", "--config-file", str(self.config), *words]
        return ["env", "--default-signal=INT,TERM,HUP,PIPE", *command]

    def publish(self, number: int, *, parent: Backup | None = None, owner: str = "guest1", name: str = "") -> Backup:
        """Make a backup that verifies."""
        wanted, instance = backup_id(f"{number:08d}-0000-4000-8000-000000000000"), instance_id(owner)
        started = BEGUN + timedelta(hours=number)
        manifest = Manifest(
            id=wanted,
            name=name or f"b{number}",
            description="of an evening",
            instance_id=instance,
            kind=Kind.INCREMENTAL if parent else Kind.FULL,
            parent=Parent(parent.id, parent.location, parent.checksum) if parent else None,
            incarnation="11111111-1111-4111-8111-111111111111",
            engine="mariabackup",
            tool_version="10.11.19",
            datastore="mariadb",
            server_version="10.11.19-MariaDB",
            lsn=Checkpoints(
                begin=parent.manifest.lsn.end if parent else Lsn(0), end=Lsn(number * 100), last=Lsn(number * 100 + 9)
            ),
            binlog=Binlog("binlog.000001", 328, "0-1-7"),
            compression="none",
            encryption=None,
            stream=StreamFacts("mbstream", 1, None),
            started=started,
            finished=started + timedelta(seconds=12.5),
            segments=(Segment(0, len(STREAM), len(STREAM), digest(STREAM)),),
        )
        with Catalog(self.url, instance=instance, open_storage=open_storage) as catalog:
            catalog.put_segment(instance, wanted, 0, STREAM, digest(STREAM))
            return catalog.publish(manifest)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A configured host without a server, with an empty store."""
    monkeypatch.setenv("PATH", f"{FAKES}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(FAKES.parents[1]))
    monkeypatch.setenv("COLUMNS", "200")
    made = Desk(tmp_path, capsys)
    made.configure()
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield made
    root.setLevel(before[0])
    for handler in set(root.handlers) - set(before[1]):
        root.removeHandler(handler)
        handler.close()


def assert_one_line(done: Done, status: int, *words: str) -> None:
    """What every error looks like."""
    assert done.status == status, done
    assert done.err.startswith("guestagent: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert done.out == ""
    for word in words:
        assert word in done.err


# -- wrong words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["backup", "show", "seven"], "'seven'"),
        (["backup", "verify", "../../etc/passwd"], "not a backup id"),
        (["backup", "delete", "9999"], "not a backup id"),
        (["backup", "create", "--parent", "newest"], "not a backup id: 'newest'"),
        (["backup", "create", "--id", ""], "not a backup id: ''"),
        (["backup", "create", "two\nlines"], "argument NAME"),
        (["backup", "create", "--description", "half \udcff"], "argument --description"),
        (["backup", "create", "one", "two"], "unrecognized arguments: two"),
        (["backup", "list", "--wat"], "--wat"),
        (["backup", "list", "-f", "xml"], "invalid choice: 'xml'"),
        (["backup", "list", "-c", "id", "-c", "nosuch"], "no column 'nosuch'; there are id, name,"),
        (["backup", "list", "--sort-column", "nosuch"], "no column 'nosuch'"),
        (["backup", "create", "-c", "nosuch"], "no column 'nosuch'; there are created,"),
        (["restore", NOBODY, "-c", "steps"], "no column 'steps'; there are backup_id,"),
        (["backup", "show"], "BACKUP_ID"),
        (["backup"], "no command 'backup'; there are backup create, backup delete,"),
        (["backup", "lst"], "no command 'backup lst'; there are backup create,"),
        (["frobnicate"], "no command 'frobnicate'; see guestagent --help"),
        (["help", "frobnicate"], "no command 'frobnicate'"),
        (["--wat", "backup", "list"], "no option --wat"),
        (["--log-file", "/nonexistent/log", "backup", "list"], "/nonexistent/log: No such file"),
        (["-q", "-v", "backup", "list"], "not allowed with argument"),
        (["restore"], "BACKUP_ID|LOCATION"),
        (["restore", NOBODY, "--datadir", ""], "argument --datadir"),
        (["restore", "file:///nowhere"], "not a"),
        (["restore", "gopher://hole/guest1/" + NOBODY, "--plan"], "gopher"),
    ],
)
def test_words_that_make_no_sense_are_told_in_one_line(desk: Desk, words: list[str], told: str) -> None:
    done = desk.type(*words)
    if "gopher" in told:
        assert_one_line(done, 3, told)  # understood, but not below the configured store
    else:
        progress = r"^ +\d+\.\d s  plan\n"
        assert_one_line(Done(done.status, done.out, re.sub(progress, "", done.err)), 2, told)


@pytest.mark.parametrize("words", [[], ["-v"], ["-v", "-v", "--debug"], ["-q"]])
def test_no_command_gives_help_and_never_a_prompt(desk: Desk, words: list[str]) -> None:
    done = desk.bare(*words)
    assert (done.status, done.out) == (2, "")
    assert "backup create" in done.err
    assert "cmd2" not in sys.modules


@pytest.mark.parametrize("words", [["--help"], ["help"], ["-h"], *([*name.split(), "--help"] for name in COMMANDS)])
def test_help_lists_the_exit_statuses_on_stdout(desk: Desk, words: list[str]) -> None:
    done = desk.bare(*words)
    assert (done.status, done.err) == (0, "")
    statuses = "0 done, 1 failed, 2 usage, 3 refused, 4 not-found, 5 chain-broken, 6 corrupt, 7 busy, 8 storage, "
    assert statuses + "9 database, 10 cancelled." in " ".join(done.out.split()).replace("- ", "-")


def test_help_knows_the_commands_and_no_more(desk: Desk) -> None:
    listed = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  ", desk.bare("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert listed == sorted([*COMMANDS, "complete", "help"])
    assert desk.bare("help", "backup", "list").out == desk.bare("backup", "list", "--help").out


# -- wrong configuration


@pytest.mark.parametrize(
    ("section", "line", "told"),
    [
        ("DEFAULT", "guest_id = ../x", "not an instance id: '../x'"),
        ("storage", "urk = file:///srv", "unknown option urk in [storage]; did you mean url?"),
        ("storrage", "url = file:///srv", "unknown section [storrage]; did you mean storage?"),
        ("storage", "url = ftp://host/dir", "no driver for the store 'ftp://host/dir'"),
        ("storage", "url =", "no store is configured; set [storage] url"),
        ("stream", "level = much", "[stream] level is 'much'; give integer value from 1 to 19"),
        ("database", "host = 127.0.0.1", "socket and host are both set"),
        ("database", "datadir = here", "[database] datadir is not an absolute path"),
        ("database", "stop_command = 'half", "[database] stop_command"),
        ("restore", "no value", "line"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(desk: Desk, section: str, line: str, told: str) -> None:
    desk.configure(**{section: line})
    assert_one_line(desk.type("backup", "list"), 2, told)


def test_a_configuration_that_cannot_be_read(desk: Desk) -> None:
    assert_one_line(desk.bare("--config-file", f"{desk.place}/none", "backup", "list"), 2, "none: No such file")
    assert_one_line(desk.bare("--config-file", str(desk.place), "backup", "list"), 2, "Is a directory")
    desk.config.write_bytes(b"\xff\xfe\0")
    assert_one_line(desk.type("backup", "list"), 2, "is not UTF-8 text")


def test_no_guest_id_is_told_only_where_it_is_needed(desk: Desk) -> None:
    desk.publish(1)
    desk.configure(DEFAULT="guest_id =")
    assert [row["name"] for row in desk.type("backup", "list", "-f", "json").json] == ["b1"]
    done = desk.type("-q", "backup", "create")
    assert_one_line(done, 2, "guest_id is not set; set it under [DEFAULT]")


# -- one exit status a family


def test_exit_statuses_of_what_a_store_can_say(desk: Desk) -> None:
    full = desk.publish(1)
    child = desk.publish(2, parent=full)
    assert_one_line(desk.type("backup", "show", NOBODY), 4, NOBODY, "`guestagent backup list` shows")
    assert_one_line(desk.type("-q", "backup", "delete", full.id), 3, child.id, "--cascade")
    segment = desk.place / "store" / "guest1" / child.id / "data" / "00000000"
    segment.write_bytes(STREAM[:-1] + b"!")
    assert_one_line(desk.type("-q", "backup", "verify", child.id), 6, f"{child.location}/data/00000000")
    (desk.place / "store" / "guest1" / full.id / "manifest.json").unlink()
    assert_one_line(desk.type("-q", "backup", "verify", child.id), 5, "chain broken at", "take a full backup")
    (desk.place / "store" / "guest1" / child.id / "manifest.json").write_text("{")
    assert_one_line(desk.type("backup", "show", child.id), 6, "manifest.json: manifest is not JSON")


def test_a_second_job_is_told_what_the_first_one_is(desk: Desk) -> None:
    full = desk.publish(1)
    with only_job(desk.place / "state", "backup of something"):
        for words in (["backup", "create"], ["backup", "delete", full.id], ["restore", full.id]):
            assert_one_line(desk.type(*words), 7, "busy with backup of something", f"pid {os.getpid()}")
        assert desk.type("backup", "list").status == 0
        assert desk.type("backup", "delete", full.id, "--dry-run").status == 0


def test_a_server_that_is_down_and_a_store_that_is_away(desk: Desk) -> None:
    assert_one_line(desk.type("-q", "backup", "create"), 9, "cannot reach the server at", "is it running?")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        desk.configure(
            storage="url = s3://bucket/prefix",
            s3=f"endpoint_url = {endpoint}\naccess_key_id = a\nsecret_access_key = b\nmax_attempts = 1",
        )
        assert_one_line(desk.type("backup", "list"), 8, endpoint)


def test_a_failed_check_of_the_doctor_is_no_success(desk: Desk) -> None:
    done = desk.type("doctor", "-f", "json")
    assert done.status == 1
    assert done.err == "guestagent: not all is well: server; do what the remedies say\n"
    findings = {row["check"]: row for row in done.json}
    assert findings["server"]["ok"] == "no"
    assert "is it running?" in findings["server"]["remedy"]
    assert [findings[check]["ok"] for check in ("instance", "state", "store")] == ["yes"] * 3


def test_a_bug_is_told_in_one_line_and_shown_with_debug(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("guestagent.cli.delete.doomed", broken)
    assert_one_line(desk.type("backup", "delete", NOBODY, "--dry-run"), 1, "KeyError: 'surprise'; this is a bug")
    done = desk.type("--debug", "backup", "delete", NOBODY, "--dry-run")
    assert done.status == 1
    assert "Traceback" in done.err
    assert done.out == ""


def test_an_error_of_many_lines_is_told_in_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "one\ntwo")

    monkeypatch.setattr("guestagent.cli.delete.doomed", broken)
    assert_one_line(desk.type("backup", "delete", NOBODY, "--dry-run"), 1, "one two")


# -- listings


def test_an_empty_store_gives_an_empty_listing(desk: Desk) -> None:
    done = desk.type("backup", "list")
    assert (done.status, done.err) == (0, "")
    assert [line.split() for line in done.out.splitlines() if "id" in line] == [["|", *" | ".join(LISTED).split(), "|"]]
    assert desk.type("backup", "list", "-f", "json").json == []
    assert desk.type("backup", "tree", "-f", "json").json == []
    assert desk.type("backup", "list", "-f", "value").out == ""


def test_a_backup_shows_the_properties_of_troves_client_first(desk: Desk) -> None:
    full = desk.publish(1, name="naïve \U0001f427")
    shown = desk.type("backup", "show", full.id, "-f", "json").json
    assert list(shown) == PROPERTIES
    assert list(full.properties()) == PROPERTIES
    assert shown == full.properties()
    assert shown["size"] == round(len(STREAM) / 2**30, 4)
    assert (shown["status"], shown["type"], shown["parent_id"], shown["note"]) == ("COMPLETED", "full", None, None)
    assert (shown["created"], shown["updated"]) == ("2026-11-22T15:00:00Z", "2026-11-22T15:00:12Z")
    assert (shown["binlog"], shown["gtid"], shown["duration"]) == ("binlog.000001:328", "0-1-7", 12.5)
    assert (shown["locationRef"], shown["checksum"]) == (full.location, full.checksum)


@pytest.mark.parametrize(
    "words",
    [["backup", "list"], ["backup", "tree"], ["backup", "verify", "{id}"], ["backup", "delete", "{id}"], ["doctor"]],
)
def test_every_listing_has_all_formats_and_columns(
    desk: Desk, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = os.statvfs(desk.place)
    monkeypatch.setattr(os, "statvfs", lambda _: space)  # others write meanwhile, and the doctor tells what is free
    full = desk.publish(1)
    words = [word.format(id=full.id) for word in words]
    if words[1:2] == ["delete"]:
        words.append("--dry-run")
    rows = desk.type(*words, "-f", "json").json
    names = list(rows[0])
    assert YAML.safe_load(desk.type(*words, "-f", "yaml").out) == rows
    heading, *lines = csv.reader(io.StringIO(desk.type(*words, "-f", "csv").out))
    assert heading == names
    assert len(lines) == len(rows)
    first = desk.type(*words, "-f", "value", "-c", names[0]).out.splitlines()
    assert first == [str(row[names[0]]) for row in rows]
    table = desk.type(*words).out
    assert all(name in table for name in names)
    two = desk.type(*words, "-f", "json", "-c", names[1], "-c", names[0].upper()).json
    assert [list(row) for row in two] == [names[:2]] * len(rows)


def test_every_show_has_all_formats_and_columns(desk: Desk) -> None:
    full = desk.publish(1)
    shown = desk.type("backup", "show", full.id, "-f", "json").json
    assert YAML.safe_load(desk.type("backup", "show", full.id, "-f", "yaml").out) == shown
    heading, values = csv.reader(io.StringIO(desk.type("backup", "show", full.id, "-f", "csv").out))
    assert heading == PROPERTIES
    assert values[2] == full.id
    assert desk.type("backup", "show", full.id, "-f", "value", "-c", "locationRef").out == f"{full.location}\n"
    fields = re.findall(r"^\| (\w+)", desk.type("backup", "show", full.id).out, re.MULTILINE)
    assert fields == ["Field", *PROPERTIES]


def test_a_listing_is_of_the_own_instance_unless_told(desk: Desk) -> None:
    desk.publish(2)
    desk.publish(1, owner="guest2")
    assert [row["name"] for row in desk.type("backup", "list", "-f", "json").json] == ["b2"]
    rows = desk.type("backup", "list", "--all", "-f", "json").json
    assert [(row["name"], row["instance_id"]) for row in rows] == [("b1", "guest2"), ("b2", "guest1")]
    assert list(rows[0]) == LISTED
    descending = desk.type(
        "backup", "list", "--all", "-f", "value", "-c", "name", "--sort-column", "name", "--sort-desc"
    )
    assert descending.out.split() == ["b2", "b1"]


def test_the_tree_draws_a_forest(desk: Desk) -> None:
    root = desk.publish(1)
    left = desk.publish(2, parent=root)
    desk.publish(3, parent=left)
    lost = desk.publish(4, parent=root)
    desk.publish(5, parent=lost)
    right = desk.publish(6, parent=root)
    desk.publish(7, parent=right)
    desk.publish(8)
    (desk.place / "store" / "guest1" / lost.id / "manifest.json").unlink()
    rows = desk.type("backup", "tree", "-f", "json").json
    assert [row["tree"] for row in rows] == ["b1", "├─ b2", "│  └─ b3", "└─ b6", "   └─ b7", "b5", "b8"]
    assert rows[1]["id"] == left.id


def test_json_stands_alone_on_stdout_whatever_is_said_beside_it(desk: Desk) -> None:
    full = desk.publish(1)
    damaged = desk.publish(2)
    (desk.place / "store" / "guest1" / damaged.id / "manifest.json").write_text("{}")
    desk.configure(database="password = visible")
    desk.config.chmod(0o644)
    done = desk.type("-v", "-v", "backup", "list", "-f", "json")
    assert [row["id"] for row in done.json] == [full.id]
    assert "is left out of the list" in done.err
    assert "every user of this host can read it" in done.err
    done = desk.type("-v", "backup", "verify", full.id, "-f", "json")
    assert [row["verified"] for row in done.json] == ["whole"]
    assert "verify" in done.err


# -- delete


def test_delete_lists_first_refuses_parents_and_cascades(desk: Desk) -> None:
    full = desk.publish(1)
    child = desk.publish(2, parent=full)
    grandchild = desk.publish(3, parent=child)
    other = desk.publish(4)
    for words in (["--dry-run"], []):
        assert_one_line(desk.type("-q", "backup", "delete", full.id, *words), 3, "2 backups stand on", "--cascade")
    dry = desk.type("backup", "delete", full.id, "--cascade", "--dry-run", "-f", "json")
    assert [row["id"] for row in dry.json] == [grandchild.id, child.id, full.id]
    assert len(desk.type("backup", "list", "-f", "json").json) == 4
    done = desk.type("backup", "delete", full.id, "--cascade", "-f", "json")
    assert (done.status, done.json) == (0, dry.json)
    assert [row["id"] for row in desk.type("backup", "list", "-f", "json").json] == [other.id]
    assert [path.name for path in (desk.place / "store" / "guest1").iterdir()] == [other.id]


# -- restore --plan


def test_a_plan_tells_what_would_be_done(desk: Desk) -> None:
    tip = desk.publish(2, parent=desk.publish(1))
    target = desk.place / "data"
    done = desk.type("restore", tip.id, "--plan", "--datadir", str(target), "-f", "json")
    assert (done.status, done.err) == (0, "")
    plan = done.json
    assert (plan["links"], plan["refused"], plan["datadir"]) == (2, [], str(target))
    assert len(plan["steps"]) == 5
    assert plan["engine"] == "mariabackup 10.11.19"
    assert not target.exists()
    by_location = desk.type("restore", tip.location, "--plan", "--datadir", str(target), "-f", "json", "--start").json
    assert by_location["steps"][:-1] == plan["steps"]
    table = desk.type("restore", tip.id, "--plan", "--datadir", str(target), "-c", "steps").out
    assert [line.split("|")[-2].strip() for line in table.splitlines() if "|" in line][1:] == plan["steps"]


def test_a_plan_that_is_refused_is_printed_with_the_reason_beside_it(desk: Desk) -> None:
    full = desk.publish(1)
    target = desk.place / "data"
    target.mkdir()
    (target / "ibdata1").write_text("precious")
    words = ("restore", full.id, "--plan", "--datadir", str(target), "-f", "json")
    done = desk.type(*words)
    assert done.status == 3
    (reason,) = done.json["refused"]
    assert f"{target} is not empty; give --replace" in reason
    assert done.err == f"guestagent: {reason}\n"
    assert desk.type(*words, "--replace").status == 0
    assert_one_line(desk.type("-q", "restore", full.id, "--datadir", str(target)), 3, "is not empty")
    desk.configure(database="os_user = nobody-of-that-name")
    done = desk.type(*words, "--replace")
    assert (done.status, len(done.json["refused"])) == (2, 1)
    assert "nobody-of-that-name" in done.err


# -- secrets


@pytest.mark.parametrize("broken", ["", "[database]\npassword = Pass$missing-w0rd\n", " continued-w0rd\n", "w0rd\n"])
def test_no_password_shows_however_much_is_asked_for(desk: Desk, broken: str) -> None:
    full = desk.publish(1)
    desk.configure(
        database="password = visible-w0rd\nuser = someone",
        s3="secret_access_key = other-w0rd",
    )
    desk.config.write_text(desk.config.read_text() + broken)
    log = desk.place / "log"
    for words in (
        ["backup", "create"],
        ["backup", "list"],
        ["backup", "show", NOBODY],
        ["restore", full.id, "--datadir", "/proc/nowhere"],
        ["doctor"],
    ):
        done = desk.type("--debug", "-vv", "--log-file", str(log), *words)
        assert "w0rd" not in done.out + done.err
    assert "Traceback" in log.read_text()
    assert "w0rd" not in log.read_text()


# -- as processes: streams


def run(desk: Desk, *words: str) -> Done:
    done = subprocess.run(desk.argv(*words), capture_output=True, text=True, timeout=PATIENCE, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_listing_imports_nothing_that_it_does_not_need(desk: Desk) -> None:
    program = (
        "import sys; from guestagent.cli import main; main(sys.argv[1:]); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    argv = [sys.executable, "-c", program, "--config-file", str(desk.config), "backup", "list", "-f", "value"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=True)
    heavy = {"boto3", "botocore", "pymysql", "cryptography", "zstandard", "tqdm", "cmd2"}
    assert not heavy & set(done.stdout.split())


def test_progress_is_a_line_a_phase_away_from_terminals_and_nothing_if_quiet(desk: Desk) -> None:
    full = desk.publish(1)
    done = run(desk, "backup", "verify", full.id, "-f", "json")
    assert re.fullmatch(rf" +\d+\.\d s  verify \({len(STREAM)} bytes\)\n", done.err)
    assert done.json[0]["id"] == full.id
    assert run(desk, "-q", "backup", "verify", full.id).err == ""


@pytest.mark.parametrize(("quiet", "width"), [(False, 100), (True, 100), (False, 0)])
def test_progress_is_a_bar_on_a_terminal(desk: Desk, quiet: bool, width: int) -> None:
    full = desk.publish(1)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    words = ["-q"] * quiet + ["backup", "verify", full.id, "-f", "json"]
    with subprocess.Popen(desk.argv(*words), stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 4096):
                seen += piece
        except OSError:
            pass  # how Linux says that the other end is closed
        finally:
            os.close(ours)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())[0]["verified"] == "whole"
        assert process.wait(PATIENCE) == 0
    if quiet:
        assert seen == b""
    else:
        assert b"verify" in seen
        assert (b"B/s" in seen) == bool(width)


def test_whoever_has_read_enough_is_no_error(desk: Desk) -> None:
    for number in range(1, 4):
        desk.publish(number)
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(desk.argv("backup", "list"), stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 141


def test_output_that_gets_lost_is_an_error(desk: Desk) -> None:
    desk.publish(1)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            desk.argv("backup", "list"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
        )
    assert done.returncode == 1
    assert re.fullmatch(r"guestagent: .*No space left on device.*\n", done.stderr)


def test_closed_streams_and_other_alphabets_do_no_harm(desk: Desk) -> None:
    desk.publish(1, name="naïve")
    for redirection, printed in (("2>&-", "naïve"), (">&-", ""), (">&- 2>&-", "")):
        line = f'exec "$@" {redirection}'
        argv = ["sh", "-c", line, "sh", *desk.argv("backup", "list", "-f", "value", "-c", "name")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, printed, "")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    argv = desk.argv("backup", "list", "-f", "value", "-c", "name")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "na\\xefve\n")


def test_a_reader_of_progress_that_goes_away_ends_nothing(desk: Desk) -> None:
    full = desk.publish(1)
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(desk.argv("backup", "verify", full.id, "-f", "json"), stdout=-1, stderr=writing) as process:
        os.close(writing)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())[0]["verified"] == "whole"
        assert process.wait(PATIENCE) == 0


# -- as processes: signals


@pytest.fixture
def silent_store() -> Iterator[tuple[str, threading.Event]]:
    """An endpoint that takes connections and never answers; the event says that somebody has come."""
    come = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def accept() -> None:
            kept.append(server.accept())
            come.set()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", come
        for connection, _ in kept:
            connection.close()


def test_ctrl_c_ends_a_listing_that_hangs(desk: Desk, silent_store: tuple[str, threading.Event]) -> None:
    endpoint, come = silent_store
    desk.configure(
        storage="url = s3://bucket", s3=f"endpoint_url = {endpoint}\naccess_key_id = a\nsecret_access_key = b"
    )
    with subprocess.Popen(desk.argv("backup", "list"), stdout=-1, stderr=-1, start_new_session=True) as process:
        assert come.wait(PATIENCE)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (10, b"", b"guestagent: stopped by SIGINT\n")
