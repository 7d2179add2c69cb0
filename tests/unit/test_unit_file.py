"""What is shipped for systemd and polkit: units that systemd understands, and the promises that the agent relies on."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestagent import agent
from guestagent.operations.service import QUIET
from guestagent.serve.daemon import START_PATIENCE, STOP_PATIENCE

ETC = Path(__file__).parents[2] / "etc"
UNITS = sorted((ETC / "systemd").glob("*.service"))
PATIENCE = 60
FEW_FILES = 1024
"""What select() can still wait for."""
MOST_FILES = 1 << 20
"""What fs.nr_open is unless somebody has changed it."""
WORST = 2.0
"""The exposure that `systemd-analyze security` may find, of 10."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze IS NOT INSTALLED: nobody checks the units"
)


class Several(dict[str, str]):
    """Options that may stand several times: all values, one a line."""

    def __setitem__(self, name: str, value: object) -> None:
        if isinstance(value, list) and name in self:
            value = [*self[name], *value]
        super().__setitem__(name, value)  # type: ignore[assignment]


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, dict_type=Several)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ETC / "systemd" / f"{name}.service")
    return parser


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)s", text)
    assert found
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_of_it(path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_a_mistake_would_be_seen(tmp_path: Path) -> None:
    """It exits with 0 and a word on stderr for what it does not know."""
    wrong = tmp_path / "guestagent.service"
    wrong.write_text(UNITS[0].read_text().replace("KillMode=", "KilMode=").replace("Type=oneshot", "Tipe=oneshot"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(wrong)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert "Unknown key" in done.stderr


@needs_systemd
def test_the_agent_has_few_rights() -> None:
    path = ETC / "systemd" / "guestagent.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    found = re.search(r"Overall exposure level for guestagent.service: ([\d.]+)", done.stdout)
    assert found
    assert float(found[1]) <= WORST


def test_the_agent_has_the_time_that_it_takes() -> None:
    service = unit("guestagent")["Service"]
    assert seconds(service["TimeoutStopSec"]) >= STOP_PATIENCE + 10
    assert seconds(service["TimeoutStartSec"]) >= START_PATIENCE + 60
    assert seconds(service["WatchdogSec"]) >= 30
    assert service["KillMode"] == "mixed"


def test_the_tools_may_hold_many_tables_open_and_the_agent_stays_with_few_files() -> None:
    soft, hard = unit("guestagent")["Service"]["LimitNOFILE"].split(":")
    assert int(soft) == FEW_FILES
    assert int(hard) == MOST_FILES


def test_the_agent_serves_while_the_database_is_down() -> None:
    section = unit("guestagent")["Unit"]
    assert {"Requires", "BindsTo", "Requisite", "PartOf"}.isdisjoint(section)
    assert "mariadb.service" in section["After"].split()


def test_what_would_harm_the_database_or_the_agent_is_not_asked_for() -> None:
    service = unit("guestagent")["Service"]
    assert "RemoveIPC" not in service, "the server's shared memory belongs to the same user"
    assert "PrivateTmp" not in service, "the server's socket may be in /tmp"
    assert "PrivateUsers" not in service
    assert "ProtectProc" not in service
    assert service["User"] == "mysql"
    assert service["CapabilityBoundingSet"] == ""
    assert service["RuntimeDirectoryMode"] in ("0700", "0750", "0755")


def test_a_quiet_start_is_as_quiet_as_the_agents_own() -> None:
    lines = unit("guestagent-quiet-mariadb")["Service"]["ExecStart"].splitlines()
    assert lines == [
        f'/bin/systemctl set-environment "MYSQLD_OPTS={QUIET["mariadb"]}"',
        "/bin/systemctl start mariadb.service",
    ]


ASK = """
const rules = [];
const polkit = {addRule: rule => rules.push(rule), Result: {YES: "yes", NOT_HANDLED: "not handled"}};
eval(require("fs").readFileSync(process.argv[1], "utf8"));
const asked = JSON.parse(process.argv[2]);
console.log(asked.map(([user, id, unit, verb]) =>
    rules[0]({id, lookup: name => ({unit, verb})[name]}, {user})).join("\\n"));
"""
UNITS_ACTION = "org.freedesktop.systemd1.manage-units"


@pytest.mark.skipif(shutil.which("node") is None, reason="node IS NOT INSTALLED: nobody runs the polkit rule")
def test_the_polkit_rule_allows_the_servers_life_and_nothing_else() -> None:
    allowed = [
        ["mysql", UNITS_ACTION, "mariadb.service", "start"],
        ["mysql", UNITS_ACTION, "mariadb.service", "stop"],
        ["mysql", UNITS_ACTION, "mariadb.service", "restart"],
        ["mysql", UNITS_ACTION, "guestagent-quiet-mariadb.service", "start"],
    ]
    refused = [
        ["www-data", UNITS_ACTION, "mariadb.service", "start"],
        ["mysql", UNITS_ACTION, "ssh.service", "stop"],
        ["mysql", UNITS_ACTION, "mariadb.service", "kill"],
        ["mysql", UNITS_ACTION, "mariadb.service", "set-property"],
        ["mysql", UNITS_ACTION, None, None],
        ["mysql", "org.freedesktop.systemd1.set-environment", None, None],
        ["mysql", "org.freedesktop.systemd1.reload-daemon", None, None],
    ]
    rule = ETC / "polkit-1" / "rules.d" / "50-guestagent.rules"
    done = subprocess.run(
        ["node", "-e", ASK, str(rule), json.dumps(allowed + refused)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.split("\n")[:-1] == ["yes"] * len(allowed) + ["not handled"] * len(refused)


DOCUMENTED = re.compile(r"^    start_command = (.*)$", re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "started"), [("--quiet", "guestagent-quiet-mariadb.service"), (None, "mariadb.service")]
)
def test_the_documented_start_command_asks_for_a_quiet_start_where_one_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str | None, started: str
) -> None:
    (line,) = DOCUMENTED.findall((ETC.parent / "docs" / "systemd.rst").read_text())
    config = tmp_path / "guestagent.conf"
    config.write_text(f"[storage]\nurl = file:///a\n[database]\nstart_command = {line}\n")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "$@"\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("MYSQLD_OPTS", raising=False)
    if options:
        monkeypatch.setenv("MYSQLD_OPTS", options)

    command = agent.build(agent.load([str(config)])).database.start_command

    assert Path(command[0]).name != "systemctl", "it would be told to set the environment of all services"
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == f"start {started}\n"
