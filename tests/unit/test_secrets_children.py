"""Secrets and our children: what they do not get to see, and what nobody sees of what they print."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from guestagent.cli import GuestagentApp
from guestagent.cli.program import TELLTALE, Program
from guestagent.errors import Corrupt, ToolError
from guestagent.operations.restore import _check_options
from guestagent.progress import Watch
from guestagent.streams.process import LINE_LIMIT, Child, clean_environment
from tests.fakes.bench import BEFORE, SECRET, Bench, read_tree
from tests.manifests import a_manifest, stored

PASSWORD = 'a "b\\ c'
ESCAPED = 'a \\"b\\\\ c'


@pytest.mark.parametrize("secret", [PASSWORD, ESCAPED])
def test_what_a_child_prints_of_its_secrets_is_not_seen(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    script = 'printf \'before %s after\\npassword="%s"\\n\' "$0" "$0" >&2; exit 3'
    with pytest.raises(ToolError) as caught, Child(["sh", "-c", script, secret], hidden=["", PASSWORD]) as child:
        child.finish(Watch())
    assert caught.value.tail == ("before *** after", 'password="***"')
    assert caught.value.what.endswith('password="***"')
    assert [record.message for record in caplog.records if "sh: " in record.message] == [
        "sh: before *** after",
        'sh: password="***"',
    ]


@pytest.mark.parametrize("seen", [0, 1, len(PASSWORD) - 1, len(PASSWORD)])
def test_a_line_that_is_cut_within_a_secret_shows_no_half_of_it(seen: int) -> None:
    before = "." * (LINE_LIMIT - seen)
    script = 'printf \'%s%s and more\n\' "$0" "$1" >&2'
    with Child(["sh", "-c", script, before, PASSWORD], hidden=[PASSWORD]) as child:
        child.finish(Watch())
    assert child.tail == (before + ("***" if seen == len(PASSWORD) else ""),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASS", "x"),
        ("DB_PASS_2", "x"),
        ("APP_PW", "x"),
        ("SIGNING_KEY", "x"),
        ("PROXY_AUTHORIZATION", "x"),
        ("DATABASE_URL", "mysql://user:secret@host/db"),
        ("HTTPS_PROXY", "http://user:secret@proxy:3128"),
    ],
)
def test_a_child_does_not_see(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert name not in clean_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [("COMPASS", "north"), ("SSH_AUTH_SOCK", "/run/x"), ("HTTPS_PROXY", "http://proxy:3128"), ("KEYBOARD", "de")],
)
def test_a_child_may_see(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert clean_environment()[name] == value


def test_a_tool_that_prints_its_options_tells_nobody_the_password(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bench.tool(FAULT="start-exit-1")
    with pytest.raises(ToolError) as caught:
        bench.backup()
    assert SECRET not in caplog.text + str(caught.value)
    assert all(SECRET in run["option_file"] for run in bench.runs("--backup"))


@pytest.mark.parametrize("words", [["--debug"], ["--debug", "-vv"], ["-vv"], []])
def test_libraries_that_log_secrets_are_never_heard_at_debug_level(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program: Program = GuestagentApp()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    program.options, _ = program.parser.parse_known_args(words)
    levels = {name: logging.getLogger(name).level for name in program.HUSHED}
    before = root.level
    try:
        program.configure_logging()
        assert {logging.getLogger(name).isEnabledFor(logging.DEBUG) for name in TELLTALE} == {False}
        assert logging.getLogger("urllib3").isEnabledFor(logging.DEBUG) is ("--debug" in words)
    finally:
        root.setLevel(before)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[mysqld]\nplugin_dir=.\n", "loads plugins from the backup"),
        (b"!include evil.cnf\n", "includes another file"),
        (b"x" * ((1 << 20) + 1), "has more than 1048576 bytes"),
    ],
)
def test_options_that_came_with_a_backup_are_looked_at_before_the_tool_obeys(
    bench: Bench, text: bytes, words: str
) -> None:
    bench.write("one")
    (bench.source / "backup-my.cnf").write_bytes(text)
    backup = bench.backup()
    with pytest.raises(Corrupt, match=words):
        bench.restore(backup, replace=True)
    assert bench.runs("--prepare") == []
    assert {name: data for name, data in read_tree(bench.datadir).items() if name in BEFORE} == BEFORE


def test_a_backup_without_options_of_its_own_has_none_to_fear(tmp_path: Path) -> None:
    _check_options(stored(a_manifest()), [tmp_path])
