"""The composition root: every option reaches its place, and a wrong one is named with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guestagent import agent
from guestagent.engines import Connection
from guestagent.errors import ConfigError, GuestagentError, NotFound, UsageError
from guestagent.keys import KeyRing, KeySettings, KmsSettings
from guestagent.operations.host import DatabaseSettings, Host, RestoreSettings, StreamSettings
from guestagent.storage import S3Settings, Storage
from guestagent.streams.process import Niceness
from tests.fakes.backups import GUEST, number

Build = Callable[..., Host]
LOCATION = f"file:///srv/other/guest9/{number(1)}"

ALL = """
[DEFAULT]
guest_id = guest7
state_dir = /var/lib/here
[database]
engine = mariabackup
socket = /run/s.sock
port = 3307
user = backup
password = s3cret
defaults_file = /etc/d.cnf
datadir = /srv/data
os_user = daemon
start_command = sv start 'the server'
stop_command = sv stop db
start_timeout = 7
parallel = 3
lock_wait_timeout = 9
block_commit_limit = 8
nice = 11
ionice = best-effort:7
checkpoint_first = incremental
extra_args = --a=1, "--b=2,3"
[storage]
url = file:///srv/backups
verify = bytes
[s3]
endpoint_url = http://store:1
region_name = r
access_key_id = key
secret_access_key = t0psecret
addressing_style = path
ca_bundle = /etc/ca
client_cert = /etc/cert
client_key = /etc/key
request_checksum_calculation = when_required
max_attempts = 2
connect_timeout = 3
read_timeout = 4
[stream]
compression = none
level = 2
segment_size = 2M
workers = 5
no_progress_limit = 6
rate_limit = 20M
[encryption]
key = kms://alias/new?region=r
old_key_files = /etc/old,/etc/older
old_keys = kms://alias/old,kms://alias/older
kms_endpoint_url = http://kms:1
kms_access_key_id = kmskey
kms_secret_access_key = hidd3n
kms_ca_bundle = /etc/kms-ca
[restore]
use_memory = 64M
work_dir = /srv/work
download_workers = 8
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build(text: str, *, location: str = "") -> Host:
        path = tmp_path / "guestagent.conf"
        path.write_text(text)
        path.chmod(0o600)
        return agent.build(agent.load([str(path)]), location=location)

    return build


def test_every_option_reaches_its_place(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, S3Settings | None]] = []

    def open_storage(url: str, *, s3: S3Settings | None = None) -> Storage:
        opened.append((url, s3))
        raise UsageError("far enough")

    monkeypatch.setattr(agent, "open_storage", open_storage)
    host = build(ALL)
    assert (host.instance, host.state_dir, host.verify_uploads) == ("guest7", Path("/var/lib/here"), "bytes")
    assert host.database == DatabaseSettings(
        connection=Connection("/run/s.sock", "", 3307, "backup", "s3cret", "/etc/d.cnf"),
        engine="mariabackup",
        datadir=Path("/srv/data"),
        os_user="daemon",
        start_command=("sv", "start", "the server"),
        stop_command=("sv", "stop", "db"),
        start_timeout=7,
        parallel=3,
        lock_wait_timeout=9,
        block_commit_limit=8,
        niceness=Niceness(11, "best-effort:7"),
        checkpoint_first="incremental",
        extra_args=("--a=1", "--b=2,3"),
    )
    assert host.stream == StreamSettings("none", 2, 2 << 20, 5, 6, 20 << 20)
    assert host.restore == RestoreSettings(64 << 20, Path("/srv/work"), 8)
    with pytest.raises(UsageError, match="far enough"):
        host.catalog.get(number(1))
    assert opened == [
        (
            "file:///srv/backups",
            S3Settings(
                "http://store:1",
                "r",
                "key",
                "t0psecret",
                "path",
                "/etc/ca",
                "/etc/cert",
                "/etc/key",
                "when_required",
                2,
                3,
                4,
            ),
        )
    ]


def test_the_keys_reach_the_catalog_and_the_stories(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[KeySettings] = []

    def open_keys(settings: KeySettings) -> KeyRing:
        opened.append(settings)
        return KeyRing()

    monkeypatch.setattr(agent, "open_keys", open_keys)
    host = build(ALL)
    assert host.keys is host.catalog._keys
    access = KmsSettings("http://kms:1", "kmskey", "hidd3n", "/etc/kms-ca")
    old = (Path("/etc/old"), Path("/etc/older"))
    assert opened == [
        KeySettings(None, old, "kms://alias/new?region=r", ("kms://alias/old", "kms://alias/older"), access)
    ]
    build(f"{STORE}[encryption]\nkey_file = /etc/key\n")
    build(STORE)
    assert opened[1:] == [KeySettings(Path("/etc/key")), KeySettings()]


def test_two_keys_for_new_backups_are_told_at_once(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"\[encryption\] key_file and key are both set"):
        build(f"{STORE}[encryption]\nkey_file = /etc/key\nkey = kms://alias/x\n")


def test_secrets_show_in_no_repr(build: Build) -> None:
    host = build(ALL)
    assert "hidd3n" not in repr(host)
    assert "s3cret" not in repr(host)
    assert "t0psecret" not in repr(host)


def test_the_defaults_are_those_of_the_settings(build: Build) -> None:
    host = build("[storage]\nurl = s3://bucket/prefix\n")
    assert host.instance is None
    assert host.database == DatabaseSettings(connection=Connection())
    assert (host.stream, host.restore, host.verify_uploads) == (StreamSettings(), RestoreSettings(), "sizes")
    assert host.catalog.location(GUEST, number(1)) == f"s3://bucket/prefix/guest1/{number(1)}"


@pytest.mark.parametrize(
    ("text", "root"), [("", "file:///srv/other"), ("[storage]\nurl = file:///srv/mine\n", "file:///srv/mine")]
)
def test_a_location_names_the_store_where_none_is_configured(build: Build, text: str, root: str) -> None:
    host = build(text, location=LOCATION)
    assert host.catalog.location(GUEST, number(1)) == f"{root}/guest1/{number(1)}"


STORE = "[storage]\nurl = file:///srv\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"no store is configured; set \[storage\] url, or OS_STORAGE__URL"),
        ("[DEFAULT]\nguest_id = a/b\n" + STORE, r"\[DEFAULT\] guest_id: not an instance id: 'a/b'; use up to 128"),
        ("[DEFAULT]\nguest_id = ..\n" + STORE, r"\[DEFAULT\] guest_id: not an instance id"),
        ("[DEFAULT]\nstate_dir =\n" + STORE, r"\[DEFAULT\] state_dir is empty; name a directory"),
        ("[DEFAULT]\nstate_dir = state\n" + STORE, r"\[DEFAULT\] state_dir is not an absolute path: state; begin"),
        ("[database]\ndatadir = ~/data\n" + STORE, r"\[database\] datadir is not an absolute path: ~/data; begin"),
        ("[restore]\nwork_dir = work\n" + STORE, r"\[restore\] work_dir is not an absolute path: work; begin"),
        (
            "[database]\nstart_command =\n" + STORE,
            r"\[database\] start_command is empty; give a command",
        ),
        (
            "[database]\nstop_command = sv 'x\n" + STORE,
            r"stop_command does not split into words: .*check its quotes",
        ),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(build: Build, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(text)


def test_a_bare_id_names_no_store(build: Build) -> None:
    with pytest.raises(ConfigError, match="no store is configured"):
        build("", location=number(1))


def test_a_location_that_is_none_is_a_usage_error(build: Build) -> None:
    with pytest.raises(UsageError, match="not a backup id: 'x'"):
        build("", location="file:///srv/guest/x")


@pytest.mark.parametrize("url", ["ftp://x/y", "file://relative", "s3://"])
def test_a_stores_url_that_no_driver_takes_is_found_on_first_use(build: Build, url: str) -> None:
    host = build(f"[storage]\nurl = {url}\n")
    with pytest.raises(ConfigError):
        host.catalog.backups()


class Pinged:
    """An agent's client whose ping ends as the test wants it."""

    def __init__(self, ending: Exception | None) -> None:
        self._ending = ending

    def __enter__(self) -> Pinged:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ping(self) -> None:
        if self._ending is not None:
            raise self._ending


@pytest.mark.parametrize(
    ("lines", "ending", "found"),
    [
        ("guest_id = g\ntransport_url = rabbit://b/", None, "the agent of g answers through the broker"),
        ("guest_id = g\ntransport_url = rabbit://b/", NotFound("nobody"), "reached; no agent of g listens"),
        ("guest_id = g", GuestagentError("never asked"), ""),
        ("transport_url = rabbit://b/", GuestagentError("never asked"), ""),
    ],
)
def test_a_broker_is_asked_where_one_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, ending: Exception | None, found: str
) -> None:
    path = tmp_path / "guestagent.conf"
    path.write_text(f"[DEFAULT]\n{lines}\n")
    path.chmod(0o600)
    monkeypatch.setattr(agent, "client", lambda *_, **__: Pinged(ending))
    told = agent.broker(agent.load([str(path)]))
    assert told.endswith(found)
    assert bool(told) is bool(found)
