"""Sockets of systemd's that start a server: the doctor finds them where systemd runs, and only there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from guestagent.errors import ToolError
from guestagent.operations import sockets
from guestagent.operations.doctor import Finding, doctor
from tests.fakes.bench import Bench

NONE = (
    "Id=mariadb.socket\nActiveState=inactive\nUnitFileState=disabled\n\n"
    "Id=mysql.socket\nActiveState=inactive\nUnitFileState="
)
ONE = NONE.replace("inactive", "active", 1)
BOTH = NONE.replace("disabled", "enabled").replace("=inactive\nUnitFileState=", "=active\nUnitFileState=")


def systemd(bench: Bench, monkeypatch: pytest.MonkeyPatch, says: str, *, status: int = 0) -> None:
    """A host that systemd runs, and what its systemctl says."""
    (bench.top / "systemd").mkdir()
    monkeypatch.setattr(sockets, "BOOTED", bench.top / "systemd")
    programs = bench.top / "programs"
    programs.mkdir()
    (programs / "said").write_text(says)
    (programs / "systemctl").write_text(f"#!/bin/sh\necho $* > {programs}/asked\ncat {programs}/said\nexit {status}\n")
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


def row(bench: Bench) -> Finding | None:
    return {finding.check: finding for finding in doctor(bench.host(), lambda _: None)}.get("socket")


def test_no_systemd_no_row(bench: Bench) -> None:
    assert row(bench) is None


def test_no_systemctl_no_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(bench, monkeypatch, ONE)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert row(bench) is None


def test_a_host_whose_server_starts_when_it_is_told_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(bench, monkeypatch, NONE)
    assert row(bench) == Finding("socket", True, "no socket of systemd's starts a server")
    asked = (bench.top / "programs" / "asked").read_text().split()
    assert asked[0] == "show"
    assert {"mariadb.socket", "mysql.socket"} < set(asked)


@pytest.mark.parametrize(
    ("says", "units"),
    [
        (ONE, "mariadb.socket"),
        (NONE.replace("disabled", "enabled"), "mariadb.socket"),
        (NONE.replace("disabled", "enabled-runtime"), "mariadb.socket"),
        (BOTH, "mariadb.socket mysql.socket"),
    ],
)
def test_a_socket_that_listens_or_will_is_a_warning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, says: str, units: str
) -> None:
    systemd(bench, monkeypatch, says)
    found = row(bench)
    assert found
    assert (found.ok, found.remedy) == (True, f"systemctl disable --now {units}")
    assert found.detail.startswith(f"{units.replace(' ', ' and ')} may start a restored server with its events")


def test_units_that_are_masked_or_unknown_are_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(bench, monkeypatch, NONE.replace("disabled", "masked"))
    assert sockets.listening() == []
    (bench.top / "programs" / "said").write_text("")
    assert sockets.listening() == []


def test_a_systemd_that_does_not_answer_is_no_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(bench, monkeypatch, "Failed to connect to bus", status=1)
    with pytest.raises(ToolError):
        sockets.listening()
    found = row(bench)
    assert found
    assert found.ok
    assert found.detail.endswith("is not known: systemctl failed with exit status 1: Failed to connect to bus")


def test_the_real_place_is_systemds_own() -> None:
    assert Path("/run/systemd/system") == sockets.BOOTED
