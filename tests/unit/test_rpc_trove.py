"""Trove's endpoint, called as oslo's dispatcher calls it."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Busy, DatabaseError, NotFound, Refused, ToolError, UsageError
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Kind, State
from guestagent.rpc import trove as module
from guestagent.rpc.trove import REFUSED
from tests.fakes.backups import number
from tests.fakes.bench import Bench
from tests.fakes.rpc import CONTEXT, PASSWORD, Agent

ID = str(number(7))


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


@pytest.fixture
def standing(agent: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """An agent of the bench's host, whose server runs."""
    monkeypatch.setattr(agent, "host", bench.host)
    monkeypatch.setattr(module, "connect", bench.server.connect)
    monkeypatch.setattr(module, "answers", bench.server.answers)
    agent.state = bench.state
    return agent


def runs(bench: Bench) -> bool:
    return bench.server.running


def call(agent: Agent, method: str, context: dict[str, Any] | None = None, **arguments: Any) -> Any:
    return getattr(agent.trove(), method)({} if context is None else context, **arguments)


def info(**changes: Any) -> dict[str, Any]:
    return {"id": ID, "name": "nightly", "description": "", "instance_id": "guest1", "parent": None} | changes


# create_backup


def test_a_backup_of_an_older_trove_may_say_less(agent: Agent) -> None:
    call(agent, "create_backup", backup_info={"id": ID})
    assert agent.desk.get(ID).request == {"name": "", "description": "", "parent": None, "parent_checksum": None}


def test_the_same_cast_twice_is_one_job(agent: Agent) -> None:
    for _ in range(2):
        call(agent, "create_backup", CONTEXT, backup_info=info())
    assert len(agent.desk.all()) == 1
    assert agent.refused == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": None}, "backup_info.name must be text, not null"),
        ({"name": 5}, "backup_info.name must be text, not int"),
        ({"name": "x" * 10_000_000}, "backup_info.name has 10000000 characters"),
        ({"description": ["x"]}, "backup_info.description must be text"),
        ({"parent": "x"}, "backup_info.parent must be a table"),
        ({"parent": {"checksum": "0" * 64}}, "backup_info.parent.location is missing"),
        ({"parent": {"location": None}}, "backup_info.parent.location must be text"),
        ({"parent": {"location": "x"}}, "backup_info.parent.location is no backup's location"),
        ({"parent": {"location": f"s3://b/guest1/{ID}"}}, "another kind of store"),
        ({"parent": {"location": f"file:///etc/guest1/{ID}"}}, "outside of this agent's store"),
        ({"parent": {"location": f"https://swift/v1/c/guest1/{ID}"}}, "another kind of store"),
    ],
)
def test_a_wrong_backup_is_refused_by_field_and_told(agent: Agent, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises((UsageError, Refused)) as caught:
        call(agent, "create_backup", backup_info=info(**wrong))
    assert field in caught.value.what
    assert agent.refused == [(ID, caught.value.what, "parent" in wrong)]
    assert agent.desk.submitted == 0
    assert not agent.state.exists()
    assert not agent.store.exists()


def test_a_parent_with_an_odd_checksum_is_refused(agent: Agent) -> None:
    parent = {"location": f"{agent.url}/guest1/{number(1)}", "checksum": "etag"}
    with pytest.raises(UsageError, match=r"backup_info\.parent\.checksum must be the SHA-256"):
        call(agent, "create_backup", backup_info=info(parent=parent))


def test_an_argument_beside_backup_info_is_refused(agent: Agent) -> None:
    with pytest.raises(UsageError, match="create_backup knows no argument 'when'"):
        call(agent, "create_backup", backup_info=info(), when="now")
    assert [told[0] for told in agent.refused] == [ID]


@pytest.mark.parametrize("arguments", [{}, {"backup_info": None}, {"backup_info": "x"}, {"backup_info": {}}])
def test_a_backup_without_an_id_is_refused_and_nobody_can_be_told(agent: Agent, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="backup_info"):
        call(agent, "create_backup", **arguments)
    assert agent.refused == []


def test_another_instances_backup_is_not_ours_to_tell_of(agent: Agent) -> None:
    with pytest.raises(Refused, match="instance_id is 'guest2', and this is guest1"):
        call(agent, "create_backup", backup_info=info(instance_id="guest2"))
    assert agent.refused == []


def test_a_busy_host_is_told(agent: Agent) -> None:
    agent.desk.room = 0
    with pytest.raises(Busy):
        call(agent, "create_backup", backup_info=info())
    assert agent.refused == [(ID, "this host is busy", False)]


def test_an_id_that_has_a_job_speaks_for_itself(agent: Agent) -> None:
    call(agent, "create_backup", backup_info=info())
    with pytest.raises(Refused, match="another request"):
        call(agent, "create_backup", backup_info=info(name="other"))
    assert agent.refused == []


# The context


@pytest.mark.parametrize("odd", ["text", ["x"], 5, {}, {"a": "x" * 20_000}, {"a": {1, 2}}])
def test_an_odd_notification_is_left_behind(agent: Agent, odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    call(agent, "create_backup", {"trove_notification": odd}, backup_info=info())
    assert agent.desk.get(ID).notification == {}
    assert "xxxx" not in caplog.text


def test_nothing_else_of_the_context_is_kept(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    call(agent, "create_backup", CONTEXT, backup_info=info())
    assert PASSWORD not in caplog.text + str(agent.desk.get(ID).properties())


# prepare


def test_prepare_without_a_backup_is_nothing_to_do(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    nothings: list[dict[str, Any]] = [{}, {"backup_info": None}, {"backup_info": {}}]
    for nothing in nothings:
        call(agent, "prepare", root_password=PASSWORD, users=[{"password": PASSWORD}], **nothing)
    assert agent.desk.submitted == 0
    assert caplog.text.count("there is nothing to do") == 3
    assert caplog.text.count("not done, since only backups are dealt with here: 'root_password', 'users'") == 3
    assert PASSWORD not in caplog.text


def test_a_restore_has_the_same_id_for_the_same_backup_alone(agent: Agent) -> None:
    places = [f"{agent.url}/guest1/{number(count)}" for count in (1, 2)]
    for place in (*places, *places):
        call(agent, "prepare", backup_info={"id": ID, "location": place})
    jobs = agent.desk.all()
    assert [job.kind for job in jobs] == [Kind.RESTORE] * 2
    assert [uuid.UUID(job.id).version for job in jobs] == [5, 5]


def test_a_restore_that_failed_is_another_job_when_it_is_asked_for_again(agent: Agent) -> None:
    backup = {"id": ID, "location": f"{agent.url}/guest1/{ID}"}
    for expected in (1, 2, 2, 3):
        call(agent, "prepare", backup_info=backup)
        assert len(agent.desk.all()) == expected
        if expected != 2 or agent.desk.submitted == 3:
            agent.desk.cancel(agent.desk.all()[-1].id, "the test says so")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"id": "../x"}, "prepare: backup_info.id must be a UUID"),
        ({"id": None}, "prepare: backup_info.id must be a UUID"),
        ({"location": None}, "prepare: backup_info.location must be text"),
        ({"location": "file:///etc/passwd"}, "prepare: backup_info.location is no backup's location"),
        ({"location": f"file:///srv/guest1/{ID}"}, "outside of this agent's store"),
        ({"checksum": 5}, "prepare: backup_info.checksum must be text"),
        ({"checksum": "0"}, "prepare: backup_info.checksum must be the SHA-256"),
    ],
)
def test_a_wrong_restore_is_refused_by_field(agent: Agent, wrong: dict[str, Any], field: str) -> None:
    good = {"id": ID, "location": f"{agent.url}/guest1/{number(1)}", "checksum": None}
    with pytest.raises((UsageError, Refused)) as caught:
        call(agent, "prepare", backup_info=good | wrong)
    assert field in caught.value.what
    assert agent.desk.submitted == 0
    remembered = [(job.kind, job.state, job.failure and job.failure.what) for job in agent.desk.all()]
    assert remembered == ([] if "id" in wrong else [(Kind.RESTORE, State.FAILED, caught.value.what)])


# What is answered


def test_small_questions_are_answered(agent: Agent) -> None:
    assert call(agent, "rpc_ping") is True
    assert call(agent, "backup_required_for_replication") is True
    for method in ("rpc_ping", "backup_required_for_replication"):
        with pytest.raises(UsageError, match="knows no argument 'x'"):
            call(agent, method, x=1)


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_what_is_not_done_here_is_refused_by_name(agent: Agent, method: str) -> None:
    with pytest.raises(Refused, match=f"^{method} is refused: "):
        call(agent, method, anything=PASSWORD)


@pytest.mark.parametrize("path", ["etc", "../etc", "/not/there", "/\0x", 5, ["/"], "/" + "x" * 5000])
def test_an_odd_path_is_refused(agent: Agent, path: Any) -> None:
    with pytest.raises(UsageError, match="get_filesystem_stats: fs_path"):
        call(agent, "get_filesystem_stats", fs_path=path)


def test_no_path_means_the_datadir(agent: Agent, tmp_path: Path) -> None:
    agent.datadir = tmp_path
    found, real = call(agent, "get_filesystem_stats", fs_path=None), os.statvfs(tmp_path)
    assert (found["block_size"], found["total_blocks"]) == (real.f_frsize, real.f_blocks)
    assert found["used"] == round((real.f_blocks - found["free_blocks"]) * real.f_frsize / 2**30, 2)
    agent.datadir = None
    with pytest.raises(DatabaseError):
        call(agent, "get_filesystem_stats")


# The server's life


def test_the_server_is_stopped_and_started_again(standing: Agent, bench: Bench) -> None:
    call(standing, "stop_db")
    assert not runs(bench)
    assert standing.stopped == [True]
    call(standing, "restart")
    assert runs(bench)
    assert standing.stopped == [True, True, False]
    assert bench.server.calls() == ["stop", "stop", "start"]


def test_the_datadir_that_the_server_names_is_looked_at(
    standing: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "host", lambda: bench.host(datadir=None))
    call(standing, "stop_db", do_not_start_on_reboot=False)
    assert not runs(bench)
    call(standing, "stop_db")
    assert bench.server.calls() == ["stop"]
    bench.server.run()
    bench.server.denied = True
    with pytest.raises(DatabaseError, match="access denied"):
        call(standing, "stop_db")
    assert runs(bench)
    assert standing.stopped == [True, True, True, False]


def test_do_not_start_on_reboot_is_logged_as_not_done(standing: Agent, caplog: pytest.LogCaptureFixture) -> None:
    call(standing, "stop_db", do_not_start_on_reboot=True)
    assert "not done, since it is the unit's own matter: do_not_start_on_reboot" in caplog.text
    with pytest.raises(UsageError, match="do_not_start_on_reboot must be true or false"):
        call(standing, "stop_db", do_not_start_on_reboot="yes")


def test_a_server_that_does_not_start_is_not_meant_to_be_down(
    standing: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "host", lambda: bench.host(start_command=("false",)))
    with pytest.raises(ToolError):
        call(standing, "restart")
    assert standing.stopped[-1] is False


@pytest.mark.parametrize("method", ["stop_db", "restart"])
def test_the_server_is_left_alone_while_a_job_runs(standing: Agent, bench: Bench, method: str) -> None:
    with only_job(bench.state, "backup 2f"), pytest.raises(Busy, match="busy with backup 2f"):
        call(standing, method)
    assert runs(bench)
    assert standing.stopped == []


def test_arguments_never_take_a_methods_own_place(agent: Agent) -> None:
    with pytest.raises(UsageError, match="knows no argument 'context', 'self'"):
        agent.trove().rpc_ping({}, **{"self": 1, "context": 2})
    with pytest.raises(NotFound):
        agent.desk.get(ID)
