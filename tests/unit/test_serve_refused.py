"""What keeps ``guestagent serve`` from starting: one line with the remedy, the right exit status, and no password."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.cli import main
from tests.unit.serve_scene import staged


@pytest.fixture(autouse=True)
def no_long_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests' process is not an agent's."""
    monkeypatch.setattr("guestagent.cli.serve.live_long", lambda: None)


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    """Each run of the program makes a handler, for a stderr that only this test has."""
    before = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = before


@pytest.mark.parametrize(
    ("section", "lines", "status", "words"),
    [
        ("DEFAULT", "guest_id = a/b", 2, r"not an instance id: 'a/b'"),
        ("storage", "url =", 2, r"no store is configured; set \[storage\] url"),
        ("DEFAULT", "transport_url =", 2, r"transport_url is empty; give rabbit://\.\.\. or local:///"),
        ("DEFAULT", "transport_url = local://", 2, "three slashes: local:///run/guestagent"),
        ("DEFAULT", "transport_url = carrier-pigeon://user:hush@host/", 2, "transport_url .*cannot be used.*; give r"),
        ("DEFAULT", "transport_url = rabbit://user:hush@host:x/", 2, "transport_url .*cannot be used.*; give rabbit"),
        ("DEFAULT", "transport_url = hush", 2, "transport_url .*cannot be used; give rabbit"),
        ("DEFAULT", "transport_url = local:///proc/nowhere", 2, "cannot use directory /proc/nowhere: .*; make it"),
        ("DEFAULT", "state_dir = /proc/nowhere", 1, "cannot write to state_dir /proc/nowhere: .*; run as a user"),
        ("DEFAULT", "state_dir = here", 2, "state_dir is not an absolute path: here; begin it with a slash"),
        ("jobs", "queue_size = none", 2, r"\[jobs\] queue_size is 'none'; give integer value from 1"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_makes_it_impossible_is_one_line_with_the_remedy(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    section: str,
    lines: str,
    status: int,
    words: str,
    debug: bool,
) -> None:
    options = ["--debug"] if debug else ["-q"]
    with staged(tmp_path) as scene:
        scene.configure(**{section: lines})

        assert main([*options, "--config-file", str(scene.config), "serve"]) == status

    out, err = capsys.readouterr()
    assert out == ""
    assert "hush" not in err
    *before, last = err.splitlines()
    assert re.search(f"^guestagent: .*{words}", last)
    assert debug or not before
