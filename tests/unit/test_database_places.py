"""Where the server is: option files followed as the clients do, and what is said when nobody is there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent import database
from guestagent.database import answers, connect, with_defaults
from guestagent.engines import Connection
from guestagent.errors import ConfigError, DatabaseError

GREETING = b"\x0a5.5.5-10.11.19-MariaDB\0" + b"\1\0\0\0" + b"12345678\0" + b"\xff\xf7\x2d\2\0\xff\x81\x15"
GREETING += bytes(6) + b"\0\0\0\0" + b"123456789012\0" + b"mysql_native_password\0"

DONE = b"\0\0\0\2\0\0\0"


def test_what_the_option_file_says(tmp_path: Path) -> None:
    (tmp_path / "my.cnf").write_text("[client]\nuser=backup\npassword='p#w'\nsocket=/run/s\n")
    found = with_defaults(Connection(defaults_file=str(tmp_path / "my.cnf"), user="own"))
    assert (found.user, found.password, found.socket) == ("own", "p#w", "/run/s")


def test_includes_are_followed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.cnf").write_text("[client]\nuser=second\n")
    (tmp_path / "more" / "a.cnf").write_text("[client]\nuser=first\npassword=kept\n")
    (tmp_path / "more" / "c.cnf~").write_text("[client]\nuser=never\n")
    (tmp_path / "one").write_text("[client]\nport=3311\nhost=db1\n")
    (tmp_path / "my.cnf").write_text(f"[client]\nuser=zeroth\n!includedir {tmp_path}/more\n!include {tmp_path}/one\n")
    listed = [tmp_path / "more" / name for name in ("c.cnf~", "b.cnf", "a.cnf")]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    found = with_defaults(Connection(defaults_file=str(tmp_path / "my.cnf")))
    assert (found.user, found.password, found.host, found.port) == ("second", "kept", "db1", 3311)


def test_a_file_that_includes_itself(tmp_path: Path) -> None:
    path = tmp_path / "my.cnf"
    path.write_text(f"!include {path}\n")
    with pytest.raises(ConfigError, match="is included too deeply; does it include itself"):
        with_defaults(Connection(defaults_file=str(path)))


@pytest.mark.parametrize("text", ["!include /no/such/file", "!includedir /no/such/directory"])
def test_an_include_that_is_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "my.cnf").write_text(text)
    with pytest.raises(ConfigError, match=r"cannot read /no/such/.*: No such file or directory"):
        with_defaults(Connection(defaults_file=str(tmp_path / "my.cnf")))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "my.cnf").write_bytes(b"[client]\npassword=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"cannot read .*my.cnf: invalid start byte"):
        with_defaults(Connection(defaults_file=str(tmp_path / "my.cnf")))


def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(database, "DEFAULT_SOCKETS", (first, second))
    assert with_defaults(Connection()).socket == str(first)
    second.touch()
    assert with_defaults(Connection()).socket == str(second)


def test_a_password_that_no_server_could_know() -> None:
    with pytest.raises(ConfigError, match="password holds half a character") as caught:
        connect(Connection(socket="/s", password="secret\udcff"), timeout=1)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as caught:
        connect(Connection(socket=str(tmp_path / "s"), user="u", password="secret"), timeout=1)
    what = f"cannot reach the server at {tmp_path}/s: no such file or directory"
    assert str(caught.value) == f"{what}; is it running? check socket, host and port in [database]"


def test_nobody_at_the_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(DatabaseError, match=f"cannot reach the server at 127.0.0.1:{port}: connection refused"):
            connect(Connection(host="127.0.0.1", port=port, user="u"), timeout=1)


@pytest.fixture
def silent_server(tmp_path: Path) -> Iterator[Path]:
    """A socket where somebody accepts and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield tmp_path / "s"


def test_a_server_that_says_nothing(silent_server: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DatabaseError, match="the server went away while connecting"):
        connect(Connection(socket=str(silent_server), user="u"), timeout=0.3)
    assert time.monotonic() - begin < 30


def test_waiting_for_an_answer_ends(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DatabaseError, match=r"no answer within 0\.5 s: cannot reach the server at"):
        answers(Connection(socket=str(tmp_path / "s"), user="u"), timeout=0.5)
    assert 0.3 <= time.monotonic() - begin < 30


def packet(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


def refusal(code: int, text: bytes) -> bytes:
    return b"\xff" + code.to_bytes(2, "little") + b"#28000" + text


def serve(path: Path, *packets: bytes) -> threading.Thread:
    """Greet the first guest with ``packets``, one each time that it says something, and leave."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(10)

    def talk() -> None:
        with listener, listener.accept()[0] as guest:
            guest.settimeout(10)
            guest.sendall(packets[0])
            for answer in packets[1:]:
                guest.recv(4096)
                guest.sendall(answer)
            guest.recv(4096)

    thread = threading.Thread(target=talk)
    thread.start()
    return thread


@pytest.mark.parametrize("code", [1045, 1698, 1862, 3118, 4151])
def test_a_server_that_does_not_let_us_in_has_answered(tmp_path: Path, code: int) -> None:
    thread = serve(tmp_path / "s", packet(0, GREETING), packet(2, refusal(code, b"Access denied")))
    assert answers(Connection(socket=str(tmp_path / "s"), user="u"), timeout=5) == "10.11.19-MariaDB"
    thread.join(10)


def test_a_server_that_lets_us_in(tmp_path: Path) -> None:
    thread = serve(tmp_path / "s", packet(0, GREETING), packet(2, DONE), packet(1, DONE))
    assert answers(Connection(socket=str(tmp_path / "s"), user="u"), timeout=5) == "10.11.19-MariaDB"
    thread.join(10)


def test_a_server_that_is_late(tmp_path: Path) -> None:
    def appear() -> None:
        time.sleep(0.5)
        serve(tmp_path / "s", packet(0, GREETING), packet(2, DONE), packet(1, DONE)).join(10)

    thread = threading.Thread(target=appear)
    thread.start()
    assert answers(Connection(socket=str(tmp_path / "s"), user="u"), timeout=10) == "10.11.19-MariaDB"
    thread.join(10)


def test_a_session_is_ended(tmp_path: Path) -> None:
    thread = serve(tmp_path / "s", packet(0, GREETING), packet(2, DONE), packet(1, DONE))
    with connect(Connection(socket=str(tmp_path / "s"), user="u"), timeout=5):
        pass
    thread.join(10)
    assert not thread.is_alive()


def test_a_server_that_shuts_the_door(tmp_path: Path) -> None:
    thread = serve(tmp_path / "s", packet(0, b"\xff" + (1130).to_bytes(2, "little") + b"Host is not allowed"))
    assert answers(Connection(socket=str(tmp_path / "s"), user="u"), timeout=5) == ""
    thread.join(10)


@pytest.mark.parametrize(("user", "who"), [("backup", "backup"), ("", "the user of this process")])
def test_access_denied(tmp_path: Path, user: str, who: str) -> None:
    thread = serve(tmp_path / "s", packet(0, GREETING), packet(2, refusal(1045, b"Access denied for ...")))
    with pytest.raises(DatabaseError) as caught:
        connect(Connection(socket=str(tmp_path / "s"), user=user, password="secret"), timeout=5)
    assert str(caught.value) == (
        f"access denied for {who} at {tmp_path}/s; check user and password in [database], or in its defaults_file"
    )
    thread.join(10)
