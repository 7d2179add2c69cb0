"""A reload: what a running agent takes anew, what it keeps, and what it says of both."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from guestagent import agent, config, options
from guestagent.errors import ConfigError

BEFORE = "[DEFAULT]\nguest_id = g1\ntransport_url = rabbit://u:hush@h/\n[storage]\nurl = file:///a\n"
AFTER = (
    "[DEFAULT]\nguest_id = g2\ntransport_url = rabbit://u:hush2@h/\n[storage]\nurl = file:///b\n"
    "[database]\npassword = hush3\n[stream]\nsegment_size = 2M\n[jobs]\nqueue_size = 3\n"
)
TAKES_A_RESTART = {"DEFAULT", "jobs", "conductor"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guestagent.conf"
    path.write_text(BEFORE)
    path.chmod(0o600)
    return path


def test_options_of_jobs_are_taken_and_those_of_the_process_are_kept(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = config.load([str(file)])
    file.write_text(AFTER)

    after = config.reload(before, [str(file)])

    assert (after.guest_id, after.transport_url, after.jobs.queue_size) == ("g1", "rabbit://u:hush@h/", 8)
    assert (after.storage.url, after.database.password, after.stream.segment_size) == ("file:///b", "hush3", 2 << 20)
    assert (before.storage.url, before.database.password) == ("file:///a", "")
    assert caplog.messages == [
        "[DEFAULT] guest_id stays as it was; a restart of the agent takes the new value",
        "[DEFAULT] transport_url stays as it was; a restart of the agent takes the new value",
        "[database] password is changed",
        "[storage] url is changed",
        "[stream] segment_size is changed",
        "[jobs] queue_size stays as it was; a restart of the agent takes the new value",
    ]


def test_a_second_reload_still_keeps_them(file: Path) -> None:
    conf = config.load([str(file)])
    file.write_text(AFTER)
    conf = config.reload(config.reload(conf, [str(file)]), [str(file)])

    assert (conf.guest_id, conf.jobs.queue_size) == ("g1", 8)
    file.write_text(BEFORE)
    assert config.reload(conf, [str(file)]).storage.url == "file:///a"


def test_a_broken_file_changes_nothing(file: Path) -> None:
    before = config.load([str(file)])
    file.write_text(BEFORE + "[stream]\nlevel = 77\n")

    with pytest.raises(ConfigError, match="level is '77'"):
        config.reload(before, [str(file)])
    assert before.stream.level == 1


def test_what_a_reload_takes_is_what_the_sample_says() -> None:
    for group, found in options.GROUPS.items():
        assert {option.mutable for option in found} == {group not in TAKES_A_RESTART}


def test_a_library_reads_the_same_files_beside_us(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(BEFORE + "[oslo_messaging_rabbit]\nrabbit_quorum_queue = true\n")
    conf = config.load([str(file)])

    first, second = config.for_library(conf), config.for_library(conf)

    assert first is not second
    assert first.default_config_files == [str(file)]
    assert list(first) == list(config.for_library(conf))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[DEFAULT]\ntransport_url =\n", r"transport_url is empty; give rabbit://\.\.\. or local:///run/guestagent"),
        ("[DEFAULT]\nguest_id =\n", "guest_id is not set"),
        ("[storage]\nurl =\n", "no store is configured"),
    ],
)
def test_what_serving_needs(file: Path, text: str, words: str) -> None:
    file.write_text(BEFORE + text)
    with pytest.raises(ConfigError, match=words):
        agent.served(agent.load([str(file)]))


def test_every_option_of_serving_reaches_its_place(file: Path) -> None:
    file.write_text(
        "[DEFAULT]\nguest_id = g7\nstate_dir = /s\ntransport_url = rabbit://u:hush@h/\ncontrol_exchange = x\n"
        "instance_rpc_encr_key = hush2\n[storage]\nurl = file:///a\n"
        "[jobs]\nqueue_size = 2\nwait_limit = 3\nhistory = 4\n"
        "[conductor]\nenabled = true\ntopic = t\nheartbeat_interval = 5\nchecksum_digits = 40\n"
    )

    served = agent.served(agent.load([str(file)]))

    assert served == agent.Served(
        instance=served.instance,
        state_dir=Path("/s"),
        transport_url="rabbit://u:hush@h/",
        exchange="x",
        encryption_key="hush2",
        conductor=True,
        conductor_topic="t",
        heartbeat_interval=5,
        queue_size=2,
        wait_limit=3,
        history=4,
        checksum_digits=40,
    )
    assert served.instance == "g7"
    assert "hush" not in repr(served)


def test_the_defaults_of_serving_are_those_of_the_settings(file: Path) -> None:
    served = agent.served(agent.load([str(file)]))
    assert served == agent.Served(
        instance=served.instance, state_dir=Path("/var/lib/guestagent"), transport_url="rabbit://u:hush@h/"
    )


@pytest.mark.parametrize(
    ("url", "warned"), [("local:///run/x", False), ("rabbit://h/", False), ("rabbit://u:p@h/", True)]
)
def test_only_a_url_with_a_password_is_a_secret(
    file: Path, caplog: pytest.LogCaptureFixture, url: str, warned: bool
) -> None:
    file.write_text(f"[DEFAULT]\ntransport_url = {url}\n")
    file.chmod(0o644)
    config.load([str(file)])
    assert bool(caplog.messages) is warned
