"""Option files: written, read back by our own reader, and refused where no reader could."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.engines import Connection
from guestagent.engines.optionfile import LONGEST_LINE, client_options, completed, rendered
from guestagent.errors import ConfigError

NASTY = [
    "it's",
    'say "x"',
    "back\\slash",
    "a#b",
    'quote"#hash',
    " leading and trailing ",
    "tab\there",
    "ünïcödé 🔑",
    "\\",
    '"',
    "'",
    "\\n",
    ";",
    "[x]",
]


def test_an_option_file_over_a_socket() -> None:
    text = rendered(Connection(socket="/run/s", user="backup", password="p"), "mariabackup")
    lines = ['user="backup"', 'password="p"', 'host="localhost"', 'socket="/run/s"']
    assert text.splitlines() == ["[client]", *lines, "[mariabackup]", *lines]


def test_an_option_file_over_the_network() -> None:
    text = rendered(Connection(host="db1", port=3307, user="backup"), "xtrabackup")
    lines = ['user="backup"', 'host="db1"', 'port="3307"']
    assert text.splitlines() == ["[client]", *lines, "[xtrabackup]", *lines]


def test_localhost_with_a_port_is_meant_as_such() -> None:
    assert 'host="127.0.0.1"\nport="3307"' in rendered(Connection(host="localhost", port=3307), "mariabackup")


def test_a_socket_wins_over_a_host() -> None:
    text = rendered(Connection(socket="/run/s", host="db1", port=3307), "mariabackup")
    assert "db1" not in text
    assert "port" not in text


def test_the_operators_file_comes_first() -> None:
    text = rendered(Connection(defaults_file="/etc/my backup.cnf"), "mariabackup")
    assert text == "!include /etc/my backup.cnf\n[client]\n[mariabackup]\n"


@pytest.mark.parametrize("path", ["etc/my.cnf", " /etc/my.cnf", "/etc/my.cnf ", "~/.my.cnf", "/etc/my\n.cnf"])
def test_an_operators_file_that_cannot_be_included(path: str) -> None:
    with pytest.raises(ConfigError, match="defaults_file"):
        rendered(Connection(defaults_file=path), "mariabackup")


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\udcff"])
def test_characters_that_no_option_file_carries(character: str) -> None:
    with pytest.raises(ConfigError, match="password holds") as caught:
        rendered(Connection(password=f"secret{character}word"), "mariabackup")
    assert "secret" not in str(caught.value)


def test_a_line_that_is_too_long() -> None:
    rendered(Connection(password="x" * (LONGEST_LINE - len('password=""'))), "mariabackup")
    with pytest.raises(ConfigError, match=f"password is longer than {LONGEST_LINE} bytes"):
        rendered(Connection(password="x" * (LONGEST_LINE - len('password=""') + 1)), "mariabackup")
    with pytest.raises(ConfigError, match="password is longer"):
        rendered(Connection(password="ü" * (LONGEST_LINE // 2)), "mariabackup")


@pytest.mark.parametrize("password", NASTY)
def test_what_is_written_is_read(password: str) -> None:
    text = rendered(Connection(socket="/run/s", user="u", password=password), "mariabackup")
    assert list(client_options(text)).count(("password", password)) == 2


@given(
    st.text(alphabet=st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=200)
)
def test_whatever_is_written_is_read(password: str) -> None:
    text = rendered(Connection(password=password), "xtrabackup")
    assert dict(client_options(text)) == {"password": password}


def test_only_groups_for_clients_count() -> None:
    ours = "[Client] # ours\nuser = backup\n[mariadb-backup]\nport=1\n"
    text = f"user=nobody\n[mysqld]\nuser=mysql\n{ours}[mysqldump]\nuser=dump\n"
    assert list(client_options(text)) == [("user", "backup"), ("port", "1")]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("password=plain", "plain"),
        ("password = spaced out ", "spaced out"),
        ("password=plain # and a comment", "plain"),
        ("password='single # quoted' # comment", "single # quoted"),
        ('password="it\'s" # comment', "it's"),
        (r'password="a\"#b" # comment', 'a"#b'),
        (r"password=a\sb\tc\\d", "a b\tc\\d"),
        (r"password=a\qb", r"a\qb"),
        ("password='half", "'half"),
        ('password="', '"'),
        ("password=", ""),
        ("password", ""),
        ("pass#word=x", None),
    ],
)
def test_values_as_the_clients_read_them(line: str, value: str | None) -> None:
    assert dict(client_options(f"[client]\n# password=no\n; password=no\n\n{line}\n")).get("password") == value


def test_underscores_are_dashes() -> None:
    assert list(client_options("[client]\nmax_allowed_packet=1M\n")) == [("max-allowed-packet", "1M")]


def test_includes_are_told_wherever_they_stand() -> None:
    text = "!include /a b.cnf\n[mysqld]\n!includedir  /etc/mysql/conf.d/ \n"
    assert list(client_options(text)) == [("!include", "/a b.cnf"), ("!includedir", "/etc/mysql/conf.d/")]


FILE = {"socket": "/file/s", "host": "filehost", "port": "3310", "user": "fileuser", "password": "filepass"}


def test_what_is_open_comes_from_the_file() -> None:
    found = completed(Connection(defaults_file="/f"), FILE)
    assert found == Connection("/file/s", "filehost", 3310, "fileuser", "filepass", "/f")


def test_what_is_set_stays() -> None:
    own = Connection(socket="/own", user="own", password="own")
    assert completed(own, FILE) == own
    assert completed(Connection(host="own", port=1), FILE) == Connection("", "own", 1, "fileuser", "filepass")


def test_a_file_that_says_nothing() -> None:
    assert completed(Connection(), {}) == Connection()


def test_a_port_that_is_no_number() -> None:
    with pytest.raises(ConfigError, match="port is not a number: 'x'"):
        completed(Connection(), {"port": "x"})
