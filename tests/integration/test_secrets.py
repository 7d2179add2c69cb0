"""No secret in anything that is written or visible: canaries wherever one can lie, each story and failure, at debug.

What is searched: stdout, stderr and log files, what children are called with and what they see of the environment,
state_dir, the store, RPC's frames and replies, errors with their causes, and the ``repr`` of everything that
configuration makes.
"""

from __future__ import annotations

import base64
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestagent import agent
from guestagent.errors import GuestagentError
from guestagent.storage import S3Settings, open_storage
from tests.canaries import Haul, awkward
from tests.integration.secret_scene import Scene, staged
from tests.servers.scripted_s3 import Reply, ScriptedS3, refusal

pytestmark = pytest.mark.integration

FAILED = "Traceback (most recent call last)"
CRASH = """
import sys
from guestagent.cli import main
from guestagent.catalog import Catalog
def crash(self, *_):
    raise RuntimeError("as the test wants it")
Catalog.backups = crash
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A guest, its server and an object store."""
    with staged() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_leaks(scene: Scene) -> Iterator[None]:
    """After each test, all that it brought to light is searched."""
    with scene.searched():
        yield


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    """In every form, beside whatever."""
    secret = awkward("Zz0123456789abcdef")
    haul = Haul({"it": b"Zz0123456789abcdef"})
    haul.add_tree("nothing", tmp_path)
    assert haul.leaks() == []
    encoded = [base64.b64encode(f"{before}{secret}".encode()).decode() for before in ("", "x", "xy")]
    for text in (secret, repr(secret), json.dumps(secret), secret.encode().hex(), *encoded):
        haul = Haul({"it": b"Zz0123456789abcdef"}, {"there": text.encode()})
        assert len(haul.leaks()) >= 1, text
    haul = Haul({"it": b"Zz0123456789abcdef"})
    try:
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise GuestagentError("failed") from error
    except GuestagentError as error:
        haul.add_error("error", error)
    assert haul.leaks()


# The stories


def test_backups_and_what_is_made_of_them(scene: Scene) -> None:
    full, child = str(uuid.uuid4()), str(uuid.uuid4())
    stories = [
        ["doctor"],
        ["backup", "create", "nightly", "--id", full],
        ["backup", "create", "hourly", "--id", child, "--parent", "latest"],
        ["backup", "list", "-f", "json"],
        ["backup", "show", child],
        ["backup", "tree"],
        ["backup", "verify", child],
        ["restore", child, "--datadir", str(scene.place / "restored"), "--plan"],
        ["restore", child, "--datadir", str(scene.place / "restored"), "--no-start"],
        ["backup", "delete", child, "--dry-run"],
        ["backup", "delete", child],
        ["job", "list", "-f", "json"],
        ["job", "show", full],
        ["key", "list"],
        ["key", "rotate", "--dry-run"],
    ]
    for words in stories:
        done = scene.type(*words)
        told = done.stderr.decode()
        assert done.returncode in ((0, 3) if words[0] == "doctor" else (0,)), f"{words}: {told[-3000:]}"
    assert "--backup" in scene.record.read_text()
    _keep_store(scene)


def _keep_store(scene: Scene) -> None:
    settings = S3Settings(
        endpoint_url=scene.endpoint, region_name="us-east-1", access_key_id="x", secret_access_key="x"
    )
    store = open_storage("s3://bucket/prefix", s3=settings)
    found = [one.key for one in store.list()]
    assert {key.rpartition("/")[2] for key in found} >= {"manifest.json", "key.json", "00000000"}
    for key in found:
        scene.haul.add_stored(f"store: {key}", store.get(key, limit=1 << 30))
        scene.haul.add("store: keys", key)
    store.close()


def test_credentials_that_the_environment_has(scene: Scene) -> None:
    config = scene.config("environment", s3="access_key_id =\nsecret_access_key =")
    for words in (["backup", "list"], ["backup", "create", "from-environment"], ["doctor"]):
        done = scene.type(*words, config=config)
        assert done.returncode in (0, 3), done.stderr.decode()[-3000:]
    assert b"X-Amz" not in b"".join(scene.haul.found.values())


def test_a_defaults_file(scene: Scene) -> None:
    options = scene.place / "client.cnf"
    secret = scene.haul.plant("defaults_file's password")
    options.write_text(f"[client]\nuser = backup\npassword = {secret}\n")
    options.chmod(0o600)
    config = scene.config("defaults", database=f"user =\npassword =\ndefaults_file = {options}")
    assert scene.type("backup", "create", config=config).returncode == 9  # it is not the password
    scene.guest.server.query("ALTER USER 'backup'@'localhost' IDENTIFIED BY %s", secret)
    try:
        assert scene.type("backup", "create", config=config).returncode == 0
        _fail_tool(scene, "backup", "create", config=config)
    finally:
        password = agent.load([str(scene.guest.config)]).database.password
        scene.guest.server.query("ALTER USER 'backup'@'localhost' IDENTIFIED BY %s", password)


# Failures


def _fail_tool(scene: Scene, *words: str, config: Path | None = None) -> None:
    """The tool prints its option file, password and all, and fails."""
    flag = Path(f"{scene.record}.fail")
    flag.touch()
    try:
        done = scene.type(*words, config=config)
    finally:
        flag.unlink()
    assert done.returncode == 1, done.stderr
    assert b"***" in done.stderr
    assert b"*0123" not in done.stderr


def test_a_tool_that_fails_and_prints_what_it_knows(scene: Scene) -> None:
    _fail_tool(scene, "backup", "create")


def test_a_wrong_password(scene: Scene) -> None:
    wrong = scene.haul.plant("wrong password")
    config = scene.config("wrong", database=f"password = {wrong}")
    for words in (["backup", "create"], ["doctor"]):
        assert scene.type(*words, config=config).returncode in (1, 3, 9)


@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "ExpiredToken", "NoSuchBucket", "Strange"])
def test_a_store_that_refuses(scene: Scene, code: str) -> None:
    with ScriptedS3(refusal(404 if code == "NoSuchBucket" else 403, code)) as store:
        config = scene.config("refusing", s3=f"endpoint_url = {store.endpoint_url}\nmax_attempts = 2")
        other = scene.config(
            "refusing-environment",
            s3=f"endpoint_url = {store.endpoint_url}\nmax_attempts = 2\naccess_key_id =\nsecret_access_key =",
        )
        for one in (config, other):
            assert scene.type("backup", "list", config=one).returncode == 8
        assert store.asked
        assert any("x-amz-security-token" in asked.headers for asked in store.asked)


@pytest.mark.parametrize("reply", [Reply(body=b"<not XML"), Reply(status=503), Reply(body=b"x" * 50, cut_at=5)])
def test_a_store_that_makes_no_sense(scene: Scene, reply: Reply) -> None:
    with ScriptedS3(reply) as store:
        config = scene.config("senseless", s3=f"endpoint_url = {store.endpoint_url}\nmax_attempts = 1")
        assert scene.type("backup", "list", config=config).returncode == 8


def test_a_store_that_is_not_there(scene: Scene) -> None:
    config = scene.config("nowhere", s3="endpoint_url = http://127.0.0.1:9\nmax_attempts = 1\nconnect_timeout = 1")
    assert scene.type("backup", "list", config=config).returncode == 8


_BROKEN: dict[str, Callable[[str], str]] = {
    "no equals sign": lambda secret: f"[database]\npassword {secret}\n",
    "a reference to nothing": lambda secret: f"[database]\npassword = {secret}$nothing\n",
    "a reference to itself": lambda secret: f"[database]\npassword = {secret}$password\n",
    "an unknown option": lambda secret: f"[database]\npasswort = {secret}\n",
    "an unknown section": lambda secret: f"[databse]\npassword = {secret}\n",
    "half a character": lambda secret: f"[database]\npassword = {secret}\udcff\n",
    "a line break": lambda secret: f"[database]\npassword = {secret}\n  {secret}\n",
    "credentials in the store's URL": lambda secret: f"[storage]\nurl = s3://key:{secret}@bucket/prefix\n",
    "credentials in a URL of another kind": lambda secret: f"[storage]\nurl = https://key:{secret}@host/prefix\n",
    "credentials in the endpoint": lambda secret: f"[s3]\nendpoint_url = http://key:{secret}@127.0.0.1:9\n",
    "half of the credentials": lambda secret: f"[s3]\naccess_key_id =\nsecret_access_key = {secret}\n",
    "an unprintable secret": lambda secret: f"[s3]\nsecret_access_key = {secret}\x01\n",
}


@pytest.mark.parametrize("broken", sorted(_BROKEN))
def test_a_configuration_that_cannot_be_used(scene: Scene, broken: str) -> None:
    secret = scene.haul.plant(f"secret beside {broken}")
    path = scene.config("broken")
    path.write_bytes((path.read_text() + _BROKEN[broken](secret)).encode("utf-8", "surrogateescape"))
    assert scene.type("backup", "create", config=path).returncode != 0
    for words in (["backup", "list"], ["doctor"]):
        scene.type(*words, config=path)


@pytest.mark.parametrize(
    "form",
    [
        "rabbit:/user:{}@127.0.0.1",
        "rabbit//user:{}@127.0.0.1",
        "user:{}@127.0.0.1",
        "rabbit://user:{}@127.0.0.1:port/",
        "strange://user:{}@host/",
        "local://user:{}@host/",
    ],
)
def test_a_transport_url_that_cannot_be_used(scene: Scene, form: str) -> None:
    url = form.format(scene.haul.plant("broker's password"))
    config = scene.config("transport", DEFAULT=f"transport_url = {url}")
    for program, words in (("guestagent", ["serve"]), ("guestagent-ctl", ["ping", "guest1"])):
        assert scene.type(*words, config=config, program=program).returncode != 0


def test_a_broker_that_is_not_there(scene: Scene) -> None:
    url = f"rabbit://user:{scene.haul.plant('password of an absent broker')}@127.0.0.1:9/"
    config = scene.config("absent", DEFAULT=f"transport_url = {url}")
    done = scene.type("--timeout", "2", "ping", "guest1", config=config, program="guestagent-ctl")
    assert done.returncode == 1, done.stderr


def test_a_crash_with_a_traceback(scene: Scene) -> None:
    log = scene.place / "logs" / "crash.log"
    argv = ["-vv", "--debug", "--log-file", str(log), "--config-file", str(scene.guest.config), "backup", "list"]
    done = scene._run([sys.executable, "-c", CRASH, *argv], "a crash", log, {})
    assert done.returncode == 1
    assert FAILED.encode() in done.stderr


# What configuration makes


def test_nothing_shows_itself(scene: Scene) -> None:
    password = scene.haul.plant("password of a broker that is not asked")
    config = scene.config("shown", DEFAULT=f"transport_url = rabbit://user:{password}@127.0.0.1:9/")
    conf = agent.load([str(config)])
    host, served = agent.build(conf), agent.served(conf)
    for one in (conf, host, host.database, host.database.connection, host.catalog, served, *vars(host).values()):
        scene.haul.add("repr", f"{one!r} {one}")
    lines: list[str] = []
    logger = _Lines(lines)
    conf.log_opt_values(logger, 10)
    scene.haul.add("oslo.config's own listing", "\n".join(lines))
    assert any("secret_access_key" in line for line in lines)


class _Lines:
    """A logger that keeps its lines."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def log(self, level: int, msg: object, *args: object) -> None:
        self._lines.append(str(msg) % args if args else str(msg))
