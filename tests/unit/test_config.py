"""Options: defaults, where values come from, and one clear line for each way to get them wrong."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

import pytest
from oslo_config import cfg, generator

from guestagent import config, options
from guestagent.errors import ConfigError

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "etc/guestagent/guestagent.conf.sample"


@pytest.fixture(autouse=True)
def no_file_of_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.conf")


def written(directory: Path, text: str, name: str = "guestagent.conf") -> str:
    path = directory / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def refusal(*files: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(files)
    return str(caught.value)


def test_without_a_file_everything_has_its_default() -> None:
    conf = config.load()

    assert (conf.guest_id, conf.state_dir) == ("", "/var/lib/guestagent")
    assert (conf.database.engine, conf.database.port, conf.database.extra_args) == ("auto", 3306, [])
    assert conf.stream.segment_size == 16 << 20
    assert conf.restore.use_memory == 0


def test_no_default_is_none() -> None:
    conf = config.load()

    values = [conf[group][option.dest] for group, found in options.GROUPS.items() if group in conf for option in found]

    assert len(values) > 20
    assert None not in values


def test_every_option_explains_itself() -> None:
    helps = [option.help or "" for _, found in config.list_opts() for option in found]

    assert all(len(text) > 20 and text.endswith(".") for text in helps)


def test_secrets_are_marked_and_nothing_else_is() -> None:
    secret = {(group, option.dest) for group, found in config.list_opts() for option in found if option.secret}

    assert secret == {
        ("DEFAULT", "transport_url"),
        ("DEFAULT", "instance_rpc_encr_key"),
        ("database", "password"),
        ("s3", "secret_access_key"),
        ("encryption", "kms_secret_access_key"),
    }


def test_secrets_do_not_reach_the_log_of_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    conf = config.load([written(tmp_path, "[database]\npassword = hush\n[s3]\nsecret_access_key = hush\n")])

    with caplog.at_level(logging.DEBUG):
        conf.log_opt_values(logging.getLogger("test"), logging.DEBUG)

    assert "database.password" in caplog.text
    assert "hush" not in caplog.text


def test_the_process_wide_configuration_is_left_alone() -> None:
    config.load()

    assert "database" not in cfg.CONF


def test_values_come_from_the_file(tmp_path: Path) -> None:
    conf = config.load([written(tmp_path, "[DEFAULT]\nguest_id = g1\n[stream]\nsegment_size = 4m\nlevel = 3\n")])

    assert (conf.guest_id, conf.stream.segment_size, conf.stream.level) == ("g1", 4 << 20, 3)


def test_a_later_file_wins_and_the_environment_wins_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(tmp_path, "[stream]\nlevel = 2\nworkers = 2\n[storage]\nurl = file:///a\n", "first.conf")
    second = written(tmp_path, "[stream]\nworkers = 3\n[storage]\nurl = file:///b\n", "second.conf")
    monkeypatch.setenv("OS_STORAGE__URL", "file:///c")
    monkeypatch.setenv("OS_DEFAULT__GUEST_ID", "from-env")

    conf = config.load([first, second])

    assert (conf.stream.level, conf.stream.workers, conf.storage.url) == (2, 3, "file:///c")
    assert conf.guest_id == "from-env"


def test_a_relative_path_is_read_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "[DEFAULT]\nguest_id = g1\n", "here.conf")
    monkeypatch.chdir(tmp_path)

    assert config.load(["here.conf"]).guest_id == "g1"


def test_the_default_file_is_read_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", Path(written(tmp_path, "[DEFAULT]\nguest_id = g1\n")))

    assert config.load().guest_id == "g1"
    assert config.load([written(tmp_path, "", "other.conf")]).guest_id == ""


def test_a_default_file_that_cannot_be_seen_is_not_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "loop" / "guestagent.conf")

    assert refusal().startswith(f"cannot read {tmp_path}/loop/guestagent.conf: ")


def test_only_files_that_were_checked_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ".guestagent/guestagent.conf.d"
    directory.mkdir(parents=True)
    written(directory, "[DEFAULT]\nguest_id = g1\n", "more.conf")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert config.load().guest_id == ""


def test_commas_and_quotes_in_extra_arguments(tmp_path: Path) -> None:
    conf = config.load([written(tmp_path, '[database]\nextra_args = --galera-info, "--tables-exclude=a{1,2}"\n')])

    assert conf.database.extra_args == ["--galera-info", "--tables-exclude=a{1,2}"]


def test_dollars_are_doubled(tmp_path: Path) -> None:
    conf = config.load([written(tmp_path, "[database]\npassword = pa$$word\n")])

    assert conf.database.password == "pa$word"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1M", 1 << 20), ("2048K", 2 << 20), ("1048576", 1 << 20), ("64m", 64 << 20), (" 2 M ", 2 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.Size(least=1 << 20, most=64 << 20)(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5M", "1T", "1 MiB", "65M", "1023K", "auto", "9" * 40])
def test_things_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size such as 16M, 1M to 64M$"):
        options.Size(least=1 << 20, most=64 << 20)(text)


def test_auto_and_open_ended_sizes() -> None:
    size = options.Size(least=1 << 20, auto=True)

    assert (size("auto"), size("4G")) == (0, 4 << 30)
    for text in ("1K", "some"):
        with pytest.raises(ValueError, match=f"'{text}' is not a size such as 16M, 1M or more, or the word auto"):
            size(text)


def test_sizes_are_values() -> None:
    size = options.Size(least=1)

    assert size == options.Size(least=1)
    assert hash(size) == hash(options.Size(least=1))
    assert size != options.Size(least=1, auto=True)
    assert size != options.Size(least=1, off=True)
    assert repr(size) == "Size(least=1, most=None, auto=False, off=False)"


def test_sizes_that_may_be_off() -> None:
    size = options.Size(least=64 << 10, off=True)

    assert (size("0"), size(0), size("0M"), size("64K"), size("9G")) == (0, 0, 0, 64 << 10, 9 << 30)
    for text in ("1", "63K", "auto", "off"):
        with pytest.raises(ValueError, match=f"'{text}' is not a size such as 16M, 64K or more, or 0$"):
            size(text)


def test_how_a_tool_gives_way_to_the_disk(tmp_path: Path) -> None:
    for value in ("", "idle", "best-effort:0", "best-effort:7"):
        conf = config.load([written(tmp_path, f"[database]\nionice = {value}\n")])
        assert conf.database.ionice == value


@pytest.mark.parametrize(
    ("section", "setting", "hint"),
    [
        ("stream", "compression = gzip", "use one of: zstd, none"),
        ("stream", "level = high", "give integer value from 1 to 19"),
        ("stream", "level = 0", "give integer value from 1 to 19"),
        ("stream", "level =", "give integer value from 1 to 19"),
        ("stream", "segment_size = 1G", "give size such as 16M, 1M to 64M"),
        ("stream", "rate_limit = 20", "give size such as 16M, 64K or more, or 0"),
        ("database", "nice = 20", "give integer value from 0 to 19"),
        ("database", "ionice = realtime", "give the word idle, or best-effort:0 to best-effort:7"),
        ("database", "ionice = best-effort:8", "give the word idle, or best-effort:0 to best-effort:7"),
        ("database", "checkpoint_first = true", "use one of: never, incremental, always"),
        ("database", "port = 70000", "give port value from 1 to 65535"),
        ("database", "start_timeout = 0", "give integer value from 1"),
        ("database", 'extra_args = "--open', "give list value"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_option_and_remedy(
    tmp_path: Path, section: str, setting: str, hint: str
) -> None:
    name, _, value = (part.strip() for part in setting.partition("="))
    file = written(tmp_path, f"[{section}]\n{setting}\n")

    assert refusal(file) == f"{file}: [{section}] {name} is {value!r}; {hint}"


def test_a_wrong_value_is_looked_for_in_the_last_file_that_has_it(tmp_path: Path) -> None:
    first = written(tmp_path, "[stream]\nlevel = 1\n", "first.conf")
    second = written(tmp_path, "[stream]\nlevel = 77\n", "second.conf")
    third = written(tmp_path, "[stream]\nworkers = 1\n", "third.conf")

    assert refusal(first, second, third).startswith(f"{second}: [stream] level is '77'; ")


def test_of_an_option_that_stands_twice_the_last_counts_and_is_named(tmp_path: Path) -> None:
    assert config.load([written(tmp_path, "[stream]\nlevel = 77\nlevel = 2\n")]).stream.level == 2
    assert "level is '78'; " in refusal(written(tmp_path, "[stream]\nlevel = 2\nlevel = 78\n"))


def test_a_wrong_value_in_the_environment_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_STREAM__LEVEL", "99")
    file = written(tmp_path, "[stream]\nlevel = 1\n")

    assert refusal(file) == "environment: OS_STREAM__LEVEL is '99'; give integer value from 1 to 19"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[database]\npassword = se$cret\n", "[database] password"),
        ("[DEFAULT]\nguest_id = $nothing\n", "[DEFAULT] guest_id"),
        ("[database]\npassword = $password\n", "[database] password"),
    ],
)
def test_a_lone_dollar_is_explained_without_the_value(tmp_path: Path, text: str, where: str) -> None:
    file = written(tmp_path, text)

    assert refusal(file) == f"{file}: {where} refers to an option that is not there, or to itself; write $ as $$"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[strorage]\nurl = file:///a\n", "unknown section [strorage]; did you mean storage?"),
        ("[replication]\nkey_file = /k\n", "unknown section [replication]; see guestagent.conf.sample for the names"),
        ("[stream]\ncompresion = none\n", "unknown option compresion in [stream]; did you mean compression?"),
        ("[DEFAULT]\nguestid = g1\n", "unknown option guestid in [DEFAULT]; did you mean guest_id?"),
        ("[DEFAULT]\nstorage = x\n", "unknown option storage in [DEFAULT]; see guestagent.conf.sample for the names"),
    ],
)
def test_a_mistyped_name_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = written(tmp_path, text)

    assert refusal(file) == f"{file}: {complaint}"


def test_sections_of_oslo_libraries_are_not_ours_to_judge(tmp_path: Path) -> None:
    file = written(tmp_path, "[oslo_messaging_rabbit]\nrabbit_quorum_queue = true\n")

    assert config.load([file]).guest_id == ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("guest_id = g1\n", "line 1: section must be started before assignment"),
        ("[database]\nhush\n", "line 2: no ':' or '=' found in assignment"),
        ("[database\n", "line 1: invalid section (must end with ])"),
    ],
)
def test_a_file_that_does_not_parse(tmp_path: Path, text: str, complaint: str) -> None:
    file = written(tmp_path, text)

    assert refusal(file) == f"{file}, {complaint}; write [section] or option = value"


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.conf"
    path.write_bytes(b"\xff\xfe\x00")

    assert refusal(str(path)) == f"{path} is not UTF-8 text; start from guestagent.conf.sample"


@pytest.mark.parametrize("name", ["absent.conf", ""])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    assert refusal(str(path)).startswith(f"cannot read {path}: ")


def test_socket_and_host_exclude_each_other(tmp_path: Path) -> None:
    file = written(tmp_path, "[database]\nsocket = /run/s\nhost = db\n")

    assert refusal(file) == "[database] socket and host are both set; keep the one that leads to the server"


@pytest.mark.parametrize(
    ("text", "mode", "warned"),
    [
        ("[database]\npassword = hush\n", 0o644, True),
        ("[database]\npassword = hush\n", 0o640, False),
        ("[s3]\nsecret_access_key = hush\n", 0o604, True),
        ("[database]\nuser = backup\n", 0o644, False),
    ],
)
def test_a_secret_that_everybody_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, mode: int, warned: bool
) -> None:
    file = written(tmp_path, text)
    Path(file).chmod(mode)

    config.load([file])

    assert bool(caplog.messages) is warned
    assert all(f"chmod o-r {file}" in message for message in caplog.messages)
    assert "hush" not in caplog.text


def test_the_sample_file_is_the_one_that_the_options_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fresh = tmp_path / "fresh.sample"

    generator.main(["--config-file", "etc/guestagent/config-generator.conf", "--output-file", str(fresh)])

    drift = difflib.unified_diff(SAMPLE.read_text().splitlines(), fresh.read_text().splitlines(), lineterm="")
    assert not list(drift), "run tox -e genconfig"


def test_the_sample_file_can_be_used_as_it_is() -> None:
    assert config.load([str(SAMPLE)]).guest_id == ""


def test_the_sample_file_with_every_option_uncommented_means_the_defaults(tmp_path: Path) -> None:
    lines = SAMPLE.read_text().splitlines()
    bare = [line.removeprefix("#") if line.startswith("#") and line[1:2].isalpha() else line for line in lines]

    conf = config.load([written(tmp_path, "\n".join(bare))])

    assert conf.restore.use_memory == 0
    assert conf.database.extra_args == []
