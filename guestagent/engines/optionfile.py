"""Option files of MySQL and MariaDB, as text: how a connection is written down, and what a client reads from one.

The grammar is that of the servers' own clients: quotes protect blanks and ``#``, a backslash escapes, later
values win, ``!include`` and ``!includedir`` pull in other files.  No file is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from guestagent.engines import Connection
from guestagent.errors import ConfigError, Corrupt

LONGEST_LINE = 4000
"""Bytes of a line; the clients read lines into a buffer of 4096 and would take the rest for another line."""

CLIENT_GROUPS = frozenset({"client", "client-server", "client-mariadb", "mariabackup", "mariadb-backup", "xtrabackup"})
"""The groups that tell a backup tool how to connect, and therefore us, too."""

_FORBIDDEN = re.compile(r"[\x00\n\r\ud800-\udfff]")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "r": "\r", "s": " ", "\\": "\\", '"': '"', "'": "'"}
_ESCAPE = re.compile(r"\\(.)")
_QUOTED = re.compile(r"(['\"])(.*)\1", re.DOTALL)


def rendered(connection: Connection, group: str) -> str:
    """The text of an option file whose ``[client]`` and ``[group]`` say how to connect; raises ConfigError."""
    lines = [_line(name, value) for name, value in _values(connection).items() if value]
    sections = [line for name in ("client", group) for line in (f"[{name}]", *lines)]
    return "\n".join([*_included(connection.defaults_file), *sections, ""])


def _values(connection: Connection) -> dict[str, str]:
    values = {"user": connection.user, "password": connection.password}
    # To the clients the host localhost means: the socket, whatever the port.
    if connection.socket:
        return {**values, "host": "localhost", "socket": connection.socket}
    host = "127.0.0.1" if connection.host == "localhost" else connection.host
    return {**values, "host": host, "port": str(connection.port) if host else ""}


def _included(defaults_file: str) -> Iterator[str]:
    if not defaults_file:
        return
    if not defaults_file.startswith("/") or defaults_file != defaults_file.strip():
        raise ConfigError(f"defaults_file is not an absolute path: {defaults_file!r}", hint="start it with a slash")
    yield _checked("defaults_file", f"!include {defaults_file}")


def _line(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return _checked(name, f'{name}="{escaped}"')


def _checked(name: str, line: str) -> str:
    """``line``, if the clients can read it; the value is a secret at times and never named."""
    if _FORBIDDEN.search(line):
        raise ConfigError(f"{name} holds a line break, a NUL or half a character", hint="option files cannot carry it")
    if len(line.encode()) > LONGEST_LINE:
        raise ConfigError(f"{name} is longer than {LONGEST_LINE} bytes", hint="option files cannot carry it")
    return line


def client_options(text: str) -> Iterator[tuple[str, str]]:
    """What ``text`` says to a client: pairs of name and value, in order, underscores turned into dashes.

    ``!include`` and ``!includedir`` come as names of their own, with the path as the value, wherever they stand.
    """
    applies = False
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith("!"):
            directive, _, path = line.partition(" ")
            yield directive, path.strip()
        elif line.startswith("["):
            applies = line[1:].partition("]")[0].strip().lower() in CLIENT_GROUPS
        elif applies and line and line[0] not in "#;":
            name, _, value = _without_comment(line).partition("=")
            yield name.strip().replace("_", "-"), _unquoted(value.strip())


def check_backed_up(text: str, base: Path) -> None:
    """Raise Corrupt if the option file of a backup in ``base`` would have the tool load what came with the backup.

    Who can write to a store could have a prepare run any code of theirs: the tool loads plugins from ``plugin_dir``
    (whose name may be cut short), and reads what is included.
    """
    for raw in text.split("\n"):
        line = raw.strip()
        name, _, value = line.partition("=")
        name = name.strip().lower().replace("-", "_").removeprefix("loose_")
        if line.startswith("!"):
            raise Corrupt("the backup's backup-my.cnf includes another file", hint="distrust that store")
        if name.startswith("plugin_d") and not _is_elsewhere(_unquoted(value.strip()), base):
            raise Corrupt("the backup's backup-my.cnf loads plugins from the backup", hint="distrust that store")


def _is_elsewhere(path: str, base: Path) -> bool:
    return path.startswith("/") and "\0" not in path and not Path(path).resolve().is_relative_to(base.resolve())


def _without_comment(line: str) -> str:
    """``line`` up to the first ``#`` that no quotes protect."""
    quote, escaped = "", False
    for position, character in enumerate(line):
        if character in "'\"" and not escaped and quote in ("", character):
            quote = "" if quote else character
        if character == "#" and not quote:
            return line[:position]
        escaped = bool(quote) and character == "\\" and not escaped
    return line


def _unquoted(value: str) -> str:
    found = _QUOTED.fullmatch(value)
    return _ESCAPE.sub(lambda escape: _ESCAPES.get(escape[1], escape[0]), found[2] if found else value)


def completed(connection: Connection, options: Mapping[str, str]) -> Connection:
    """``connection``, with what it leaves open from ``options``; its own socket or host rules out theirs."""
    placed = bool(connection.socket or connection.host)
    return Connection(
        socket=connection.socket if placed else options.get("socket", ""),
        host=connection.host if placed else options.get("host", ""),
        port=connection.port if placed else _port(options.get("port", "3306")),
        user=connection.user or options.get("user", ""),
        password=connection.password or options.get("password", ""),
        defaults_file=connection.defaults_file,
    )


def _port(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"defaults_file: port is not a number: {text!r}")
    return int(text)
