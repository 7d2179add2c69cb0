"""What callers of the agent's RPC may count on: the same tests over local:// and over a real RabbitMQ."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Busy, GuestagentError, NotFound, Refused, Stalled, UsageError
from guestagent.jobs.record import Kind, Step
from guestagent.model import InstanceId
from guestagent.rpc.client import Absent, AgentClient, NoAnswer, Unreachable
from guestagent.transport.oslo import messaging
from tests.fakes.backups import chain, number
from tests.fakes.rpc import CONTEXT, PASSWORD, Agent, client_of, serving, trove_client
from tests.processes import eventually
from tests.servers.rabbitmq import shared_rabbitmq

KEY = "an instance's key"
_number = itertools.count(1)


def _local(request: pytest.FixtureRequest) -> str:
    directory: Path = request.getfixturevalue("tmp_path_factory").mktemp("rpc")
    return f"local://{directory}"


def _rabbit(_: pytest.FixtureRequest) -> str:
    return shared_rabbitmq().url(shared_rabbitmq().vhost())


@pytest.fixture(
    scope="module",
    params=[pytest.param(_local, id="local"), pytest.param(_rabbit, id="rabbit", marks=pytest.mark.integration)],
)
def url(request: pytest.FixtureRequest) -> str:
    make: Callable[[pytest.FixtureRequest], str] = request.param
    return make(request)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path, instance=InstanceId(f"guest{next(_number)}"))


@pytest.fixture
def served(agent: Agent, url: str) -> Iterator[Agent]:
    with serving(agent, url):
        yield agent


@pytest.fixture
def client(served: Agent, url: str) -> Iterator[AgentClient]:
    with client_of(url, served.instance) as made:
        yield made


@pytest.fixture
def trove(served: Agent, url: str) -> Iterator[Any]:
    with trove_client(url, served.instance) as made:
        yield made


def info(**changes: Any) -> dict[str, Any]:
    """create_backup's backup_info, as Trove sends it, with what a newer one may add."""
    return {
        "id": str(uuid.uuid4()),
        "name": "nightly",
        "description": None,
        "instance_id": None,
        "backup_type": None,
        "checksum": None,
        "parent": None,
        "datastore": "mariadb",
        "datastore_version": "10.11",
        "storage_driver": "swift",
        "swift_container": "backups",
        "swift_url": None,
        "of_a_newer_trove": {"deep": [1]},
    } | changes


# Ours


def test_a_backup_is_asked_for_and_the_job_comes_back_at_once(client: AgentClient, agent: Agent) -> None:
    wanted = str(number(7))
    job = client.create(id=wanted, name="nächtlich", parent="latest")
    assert (job["id"], job["kind"], job["state"], job["origin"]) == (wanted, "backup", "queued", "rpc")
    assert job["request"]["name"] == "nächtlich"
    assert job["request"]["parent"] == "latest"
    assert agent.desk.get(wanted).kind is Kind.BACKUP


def test_the_same_request_again_is_the_same_job(client: AgentClient, agent: Agent) -> None:
    wanted = str(number(7))
    assert client.create(id=wanted, name="a")["created"] == client.create(id=wanted, name="a")["created"]
    with pytest.raises(Refused, match="another request"):
        client.create(id=wanted, name="b")
    assert len(agent.desk.all()) == 1


def test_every_kind_of_work_is_asked_for(client: AgentClient, agent: Agent) -> None:
    asked = [
        client.restore(f"{agent.url}/guest1/{number(1)}", replace=True, start=False),
        client.restore(number(1)),
        client.verify(number(1)),
        client.delete(number(1), cascade=True),
    ]
    assert [job["kind"] for job in asked] == ["restore", "restore", "verify", "delete"]
    assert asked[0]["request"] == {
        "source": f"{agent.url}/guest1/{number(1)}",
        "checksum": None,
        "replace": True,
        "pristine": False,
        "start": False,
        "datadir": None,
        "accept_unencrypted": None,
    }
    assert asked[3]["request"] == {"backup_id": str(number(1)), "cascade": True}


def test_jobs_are_shown_newest_first_with_how_far_they_are(client: AgentClient, agent: Agent) -> None:
    for count in range(1, 5):
        client.create(id=number(count), deadline=datetime(2099, 1, 1, tzinfo=UTC))
    agent.desk.begin(number(2))
    agent.desk.steps[number(2)] = Step("dump", done=50, total=100, rate=10)
    assert [job["id"] for job in client.jobs(limit=3)] == [str(number(count)) for count in (4, 3, 2)]
    (alone,) = client.jobs(job_id=number(2))
    assert (alone["phase"], alone["percent"], alone["left"]) == ("dump", 50, 5.0)
    assert alone["deadline"] == "2099-01-01T00:00:00.000Z"
    assert client.ping()["job"]["id"] == number(2)
    assert client.cancel(number(2))["state"] == "cancelled"
    with pytest.raises(NotFound, match=str(number(9))):
        client.jobs(job_id=number(9))


def test_backups_are_listed_and_shown(client: AgentClient, agent: Agent) -> None:
    with agent.catalog() as catalog:
        made = chain(catalog, 2)
    assert client.list() == []
    assert client.list(all=True) == [one.properties() for one in made]
    assert client.show(number(2))["parent_id"] == number(1)
    with pytest.raises(NotFound, match="no backup"):
        client.show(number(3))


def test_the_doctor_answers_what_is_wrong(client: AgentClient, agent: Agent) -> None:
    found = {finding["check"]: finding for finding in client.doctor()}
    assert found["instance"] == {
        "check": "instance",
        "ok": True,
        "detail": f"guest_id is {agent.instance}",
        "remedy": "",
    }
    assert not found["server"]["ok"]
    assert PASSWORD not in str(found)


def test_a_ping_says_who_is_there(client: AgentClient, agent: Agent) -> None:
    answer = client.ping()
    assert (answer["guest_id"], answer["job"]) == (agent.instance, None)
    assert answer["now"].endswith("Z")


def test_a_request_past_its_deadline_is_refused(client: AgentClient, agent: Agent) -> None:
    with pytest.raises(Refused, match="deadline"):
        client.create(deadline=datetime.now(UTC) - timedelta(seconds=1))
    assert not agent.desk.all()


def test_a_busy_host_says_so(client: AgentClient, agent: Agent) -> None:
    agent.desk.room = 0
    with pytest.raises(Busy, match="busy") as caught:
        client.verify(number(1))
    assert type(caught.value) is Busy
    assert "Traceback" not in str(caught.value)


def test_an_error_arrives_in_one_line(client: AgentClient) -> None:
    with pytest.raises(UsageError) as caught:
        client.show("../x\n")
    assert caught.value.what == r"show: backup_id must be a UUID in lower case with dashes, not '../x\n'"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("namespace", "version", "method", "kind"),
    [
        ("backup", "1.0", "_submit", "NoSuchMethod"),
        ("backup", "1.0", "target", "NoSuchMethod"),
        ("backup", "1.0", "__class__", "NoSuchMethod"),
        ("backup", "1.1", "ping", "UnsupportedVersion"),
        ("backup", "2.0", "ping", "UnsupportedVersion"),
        ("backups", "1.0", "ping", "UnsupportedVersion"),
        ("backup", "1.0", "rpc_ping", "NoSuchMethod"),
        (None, "1.0", "ping", "NoSuchMethod"),
        (None, "1.4", "rpc_ping", "UnsupportedVersion"),
        (None, "1.0", "_told", "NoSuchMethod"),
        (None, "1.0", "nothing", "NoSuchMethod"),
    ],
)
def test_what_is_not_exposed_is_refused_by_oslos_words(
    served: Agent,
    url: str,
    namespace: str | None,
    version: str,
    method: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    aimed = trove_client(url, served.instance, namespace=namespace, version=version)
    with aimed as client, pytest.raises(messaging.RemoteError) as caught:
        client.call({}, method)
    assert caught.value.exc_type == kind
    (line,) = refusals(caplog)
    assert method in line
    assert not any(record.exc_info for record in caplog.records)


# Trove's


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.3"])
def test_trove_is_answered_in_all_its_versions(trove: Any, version: str) -> None:
    assert trove.prepare(version=version).call(CONTEXT, "rpc_ping") is True


def test_trove_casts_a_backup(trove: Any, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asked = info(instance_id=agent.instance, description="two\nlines")
    trove.cast(CONTEXT, "create_backup", backup_info=asked)
    assert eventually(lambda: bool(agent.desk.all()))
    (job,) = agent.desk.all()
    assert (job.id, job.kind, job.origin, job.deadline) == (asked["id"], Kind.BACKUP, "trove", None)
    assert job.request == {
        "name": "nightly",
        "description": "two lines",
        "parent": None,
        "parent_checksum": None,
    }
    assert job.notification == CONTEXT["trove_notification"]
    assert PASSWORD not in caplog.text
    assert PASSWORD not in str(job)


def test_trove_casts_an_incremental(trove: Any, agent: Agent) -> None:
    parent = {"location": f"{agent.url}/{agent.instance}/{number(1)}", "checksum": "ab" * 32}
    trove.cast(CONTEXT, "create_backup", backup_info=info(parent=parent))
    assert eventually(lambda: bool(agent.desk.all()))
    (job,) = agent.desk.all()
    assert (job.request["parent"], job.request["parent_checksum"]) == (number(1), "ab" * 32)


def test_trove_casts_a_restore_twice_and_gets_it_once(
    trove: Any, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    location = f"{agent.url}/guest1/{number(2)}"
    restored = {
        "id": str(number(2)),
        "instance_id": "guest1",
        "location": location,
        "type": "full",
        "checksum": "0" * 64,
    }
    arguments = {
        "packages": ["mariadb-server"],
        "databases": [],
        "memory_mb": 512,
        "users": [{"name": "u", "password": PASSWORD}],
        "device_path": "/dev/vdb",
        "mount_point": "/var/lib/mysql",
        "backup_info": restored | {"storage_driver": "swift", "newer": 1},
        "config_contents": "[mysqld]",
        "root_password": PASSWORD,
        "overrides": None,
        "cluster_config": None,
        "snapshot": None,
        "modules": None,
        "ds_version": "10.11",
    }
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        trove.prepare(version="1.1").cast(CONTEXT, "prepare", **arguments)
    assert eventually(lambda: agent.desk.submitted == 2)
    (job,) = agent.desk.all()
    assert (job.kind, job.origin) == (Kind.RESTORE, "trove")
    assert job.request == {
        "source": location,
        "checksum": "0" * 64,
        "replace": False,
        "pristine": True,
        "start": True,
        "datadir": None,
        "accept_unencrypted": None,
    }
    assert job.notification == CONTEXT["trove_notification"]
    assert (
        "'config_contents', 'device_path', 'memory_mb', 'mount_point', 'packages', 'root_password', 'users'"
        in caplog.text
    )
    assert PASSWORD not in caplog.text


def test_a_cast_that_is_wrong_is_one_line_in_the_log(
    trove: Any, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    trove.cast(CONTEXT, "create_backup", backup_info=info(id="../../etc"))
    assert eventually(lambda: bool(refusals(caplog)))
    assert refusals(caplog) == [
        "refused 'create_backup': create_backup: backup_info.id"
        " must be a UUID in lower case with dashes, not '../../etc'"
    ]
    assert not any(record.exc_info for record in caplog.records)
    assert agent.desk.submitted == 0
    assert agent.refused == []


def test_a_call_that_is_refused_reaches_trove_in_words(trove: Any) -> None:
    with pytest.raises(messaging.RemoteError) as caught:
        trove.prepare(version="1.3").call(CONTEXT, "pre_create_backup")
    assert caught.value.value.startswith("pre_create_backup is refused: volume snapshots are not made here")
    assert caught.value.exc_type == "Refused"


def test_the_filesystem_is_looked_at(trove: Any, tmp_path: Path) -> None:
    found = trove.call(CONTEXT, "get_filesystem_stats", fs_path=str(tmp_path))
    assert list(found) == ["block_size", "total_blocks", "free_blocks", "total", "free", "used"]
    assert found["total"] == round(found["block_size"] * found["total_blocks"] / 2**30, 2)
    assert 0 <= found["free"] == found["free_blocks"] * found["block_size"]


# Encrypted


def test_encrypted_messages_are_understood_and_plain_ones_refused(
    agent: Agent, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(agent, url, key=KEY):
        with client_of(url, agent.instance, key=KEY) as client, trove_client(url, agent.instance, key=KEY) as trove:
            assert client.create(id=number(1), name="ä")["request"]["name"] == "ä"
            trove.cast(CONTEXT, "create_backup", backup_info=info(id=str(number(2))))
            assert eventually(lambda: len(agent.desk.all()) == 2)
        with client_of(url, agent.instance) as plain, pytest.raises(Refused, match="not encrypted"):
            plain.ping()
        with client_of(url, agent.instance, key="another") as wrong, pytest.raises(Refused, match="does not decrypt"):
            wrong.ping()
    assert len(refusals(caplog)) == 2
    assert KEY not in caplog.text


def test_an_agent_without_the_key_refuses_encrypted_messages(client: AgentClient, agent: Agent, url: str) -> None:
    with client_of(url, agent.instance, key=KEY) as secretive, pytest.raises(UsageError, match="backup_id"):
        secretive.show(str(number(1)))


# Nobody there, and too slow


def test_nobody_there_is_told_at_once(url: str) -> None:
    began = time.monotonic()
    with client_of(url, "nobody") as client, pytest.raises(Absent, match="no agent of nobody is listening") as caught:
        client.ping()
    assert time.monotonic() - began < 20
    assert isinstance(caught.value, NotFound)
    assert isinstance(caught.value, Unreachable)


def test_no_answer_names_the_id_to_ask_for(agent: Agent, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(agent.desk, "submit", lambda job: release.wait(20) and job)
    with serving(agent, url):
        with client_of(url, agent.instance, timeout=1) as client, pytest.raises(NoAnswer, match="within 1 s") as caught:
            client.create(id=number(1))
        release.set()
    assert str(number(1)) in caught.value.hint
    assert isinstance(caught.value, Stalled)


def test_a_bug_of_ours_does_not_show_our_insides(
    client: AgentClient, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(wanted: str) -> None:
        raise ZeroDivisionError(PASSWORD)

    monkeypatch.setattr(agent.desk, "get", broken)
    with pytest.raises(GuestagentError, match="ZeroDivisionError in 'jobs'") as caught:
        client.jobs(job_id=number(1))
    assert PASSWORD not in repr(caught.value)
    assert any(record.exc_info for record in caplog.records)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "guestagent.rpc.dispatch"]
