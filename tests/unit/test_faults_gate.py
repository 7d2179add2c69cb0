"""The injected faults are what they say: seen by a client that knows nothing of them, and counted as scripted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.processes import eventually
from tests.servers.faults.disk import disk
from tests.servers.faults.gate import FaultGate, kind_of
from tests.servers.faults.script import DISK, S3, Fault, Kind, Play, Script, What, cells

STALL = 4.0
IMPATIENCE = 0.5
"""Seconds that a client waits that is not to see the end of a stall."""
PATIENCE = 20.0
SEGMENT = "/bucket/guest1/b/data/00000000"
MANIFEST = "/bucket/guest1/b/manifest.json"
LIST = "/bucket?list-type=2&prefix=guest1"
BODY = b"0123456789" * 20


class Behind(BaseHTTPRequestHandler):
    """A store that answers what it was last given under a path, lists what it has, and notes all requests."""

    protocol_version = "HTTP/1.1"
    held: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"{self.command} {self.path}")
        found = b""
        if self.command == "PUT":
            self.held[self.path.removeprefix("/bucket/")] = body
        elif "list-type" in self.path:
            found = b"".join(b"<Contents><Key>%s</Key></Contents>" % name.encode() for name in sorted(self.held))
        else:
            found = self.held.get(self.path.removeprefix("/bucket/"), b"")
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _serve


class Client:
    """Requests by hand, each on a connection of its own."""

    def __init__(self, gate: FaultGate, behind: type[Behind]) -> None:
        self.gate = gate
        self.held, self.asked = behind.held, behind.asked
        self._port = int(gate.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, patience: float = PATIENCE
    ) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=patience)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def fails(
        self, method: str, path: str, body: bytes | None = None, *, patience: float = PATIENCE
    ) -> type[Exception]:
        with pytest.raises((OSError, HTTPException)) as failed:
            self.ask(method, path, body, patience=patience)
        return failed.type

    def begin(self, line: str) -> Play:
        return self.gate.begin(Script.parse(line))


@pytest.fixture
def client() -> Iterator[Client]:
    class Handler(Behind):
        pass

    Handler.held, Handler.asked = {"guest1/b/old": BODY}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    with FaultGate(server.server_port, stall=STALL) as gate:
        yield Client(gate, Handler)
        assert eventually(lambda: not gate.busy)
    server.shutdown()
    server.server_close()
    thread.join(5)


OLD = "/bucket/guest1/b/old"


# -- scripts


def test_a_seed_is_one_script_and_another_seed_another_one() -> None:
    assert [str(Script.of(seed)) for seed in range(50)] == [str(Script.of(seed)) for seed in range(50)]
    assert len({str(Script.of(seed)) for seed in range(50)}) > 40


@pytest.mark.parametrize("suits", [S3, DISK], ids=["s3", "disk"])
def test_a_script_suits_its_store_and_reads_back_from_its_line(suits: dict[What, frozenset[Kind]]) -> None:
    for seed in range(300):
        script = Script.of(seed, suits=suits)
        assert Script.parse(str(script)) == script
        assert 1 <= len(script.faults) <= 3
        assert all(fault.kind in suits[fault.what] for fault in script.faults)


def test_a_script_of_some_kinds_and_without_some_faults() -> None:
    kinds = (Kind.GET, Kind.LIST)
    for seed in range(100):
        for fault in Script.of(seed, kinds=kinds, but=(What.STALL,)).faults:
            assert fault.kind in kinds
            assert fault.what is not What.STALL


def test_no_faults_are_a_line_too() -> None:
    assert Script.parse(str(Script())) == Script()


@pytest.mark.parametrize("line", ["get", "get@1:500", "got@1*1:500", "get@1*1:501", "get@x*1:500"])
def test_a_line_that_is_no_script(line: str) -> None:
    with pytest.raises(ValueError, match=r"not a|is not"):
        Script.parse(line)


def test_every_kind_of_fault_is_some_stores() -> None:
    assert {what for _, what in cells(S3)} | {what for _, what in cells(DISK)} == set(What)


def test_requests_are_counted_by_kind_and_struck_as_often_as_told() -> None:
    play = Play(Script.parse("get@2*2:500 any@6*0:expired"))
    met = [play.meet(kind, "x") for kind in (Kind.GET, Kind.HEAD, Kind.GET, Kind.GET, Kind.GET, Kind.HEAD, Kind.GET)]
    assert [fault.what if fault else None for fault in met] == [
        None,
        None,
        What.ERROR,
        What.ERROR,
        None,
        What.EXPIRED,
        What.EXPIRED,
    ]
    assert [(hit.kind, hit.number) for hit in play.hits] == [
        (Kind.GET, 2),
        (Kind.GET, 3),
        (Kind.HEAD, 6),
        (Kind.GET, 7),
    ]


def test_a_fault_strikes_once_or_for_ever() -> None:
    once, ever = Fault(Kind.GET, 3, 1, What.ERROR), Fault(Kind.GET, 3, 0, What.ERROR)
    assert [number for number in range(1, 8) if once.strikes(number)] == [3]
    assert [number for number in range(1, 8) if ever.strikes(number)] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("request_line", "kind"),
    [
        (f"PUT {SEGMENT}", Kind.PUT_SEGMENT),
        (f"PUT {MANIFEST}", Kind.PUT_MANIFEST),
        ("PUT /bucket/p/guest1/b/key.json", Kind.PUT_KEY),
        ("PUT /bucket/p/guest1/.probe-1", None),
        (f"GET {SEGMENT}", Kind.GET),
        (f"HEAD {MANIFEST}", Kind.HEAD),
        (f"GET {LIST}", Kind.LIST),
        ("GET /bucket?location", None),
        ("PUT /bucket", None),
        ("POST /bucket?delete", Kind.DELETE),
        (f"DELETE {SEGMENT}", Kind.DELETE),
    ],
)
def test_what_a_request_is_for(request_line: str, kind: Kind | None) -> None:
    assert kind_of(*request_line.split()) is kind


# -- the gate


def test_what_is_not_struck_goes_through(client: Client) -> None:
    play = client.begin("get@2*1:500")
    assert client.ask("PUT", SEGMENT, BODY) == (200, b"")
    assert client.ask("GET", SEGMENT) == (200, BODY)
    assert client.ask("HEAD", SEGMENT) == (200, b"")
    assert b"data/00000000" in client.ask("GET", LIST)[1]
    assert play.hits == []
    assert client.ask("GET", SEGMENT)[0] == 500
    assert client.ask("GET", SEGMENT) == (200, BODY)
    assert [str(hit) for hit in play.hits] == ["get@2*1:500 at get 2, guest1/b/data/00000000"]


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("500", 500, b"InternalError"),
        ("503", 503, b"SlowDown"),
        ("expired", 403, b"ExpiredToken"),
        ("skewed", 403, b"RequestTimeTooSkewed"),
        ("full", 507, b"QuotaExceeded"),
        ("200-error", 200, b"<Error>"),
    ],
)
def test_errors_come_instead_of_what_was_asked(client: Client, what: str, status: int, code: bytes) -> None:
    client.begin(f"put-segment@1*1:{what}")
    answered, body = client.ask("PUT", SEGMENT, BODY)
    assert (answered, code in body) == (status, True)
    assert client.asked == []
    assert client.ask("PUT", SEGMENT, BODY)[0] == 200


@pytest.mark.parametrize("what", ["reset-before", "reset-in", "reset-after"])
def test_a_reset_before_the_end_of_a_request_leaves_nothing(client: Client, what: str) -> None:
    client.begin(f"put-segment@1*1:{what}")
    assert issubclass(client.fails("PUT", SEGMENT, BODY * 1000), ConnectionError)
    assert client.asked == []


@pytest.mark.parametrize("what", ["lost-ack", "lost-ack-500"])
def test_a_lost_acknowledgement_is_of_something_that_is_stored(client: Client, what: str) -> None:
    client.begin(f"put-segment@1*1:{what}")
    if what == "lost-ack":
        assert issubclass(client.fails("PUT", SEGMENT, BODY), ConnectionError)
    else:
        assert client.ask("PUT", SEGMENT, BODY)[0] == 500
    assert client.held["guest1/b/data/00000000"] == BODY


def test_an_answer_is_reset_in_its_middle(client: Client) -> None:
    client.begin("get@1*1:reset-answer")
    client.fails("GET", OLD)
    assert client.asked == [f"GET {OLD}"]


def test_an_answer_ends_early_and_says_more(client: Client) -> None:
    client.begin("get@1*1:short")
    assert client.fails("GET", OLD).__name__ == "IncompleteRead"


def test_an_answer_is_less_and_says_so(client: Client) -> None:
    client.begin("get@1*1:less")
    assert client.ask("GET", OLD) == (200, BODY[: len(BODY) // 2])


def test_a_bit_of_an_answer_is_another_one(client: Client) -> None:
    client.begin("get@1*2:flip")
    found = client.ask("GET", OLD)[1]
    assert len(found) == len(BODY)
    assert sum(one != other for one, other in zip(found, BODY, strict=True)) == 1
    assert client.ask("GET", "/bucket/guest1/b/nothing") == (200, b"")


def test_a_stalled_request_is_obeyed_when_nobody_waits_any_more(client: Client) -> None:
    client.begin("put-segment@1*1:stall")
    assert client.fails("PUT", SEGMENT, BODY, patience=IMPATIENCE) is TimeoutError
    assert client.held.get("guest1/b/data/00000000") is None
    assert client.gate.busy == 1
    assert eventually(lambda: "guest1/b/data/00000000" in client.held)


def test_an_answer_stalls_half_way(client: Client) -> None:
    client.begin("get@1*1:stall-answer")
    assert client.fails("GET", OLD, patience=IMPATIENCE) is TimeoutError


def test_a_slow_answer_comes_whole(client: Client) -> None:
    client.begin("get@1*1:slow")
    begun = time.monotonic()
    assert client.ask("GET", OLD) == (200, BODY)
    assert time.monotonic() - begun > 0.1


def test_a_request_is_obeyed_twice(client: Client) -> None:
    client.begin("put-segment@1*1:twice")
    assert client.ask("PUT", SEGMENT, BODY)[0] == 200
    assert client.asked == [f"PUT {SEGMENT}"] * 2


def test_a_request_is_obeyed_when_all_is_over(client: Client) -> None:
    client.begin("put-manifest@1*1:late")
    assert issubclass(client.fails("PUT", MANIFEST, BODY), ConnectionError)
    assert eventually(lambda: not client.gate.busy)
    assert client.asked == []
    client.gate.deliver()
    assert client.held["guest1/b/manifest.json"] == BODY
    client.gate.deliver()
    assert client.asked == [f"PUT {MANIFEST}"]


def test_a_put_is_swallowed(client: Client) -> None:
    client.begin("put-manifest@1*1:swallow")
    assert client.ask("PUT", MANIFEST, BODY)[0] == 200
    assert client.asked == []


def test_a_listing_lags_behind_what_was_put_lately(client: Client) -> None:
    client.begin("list@1*2:lag")
    client.ask("PUT", SEGMENT, BODY)
    for _ in range(2):
        assert client.ask("GET", LIST)[1] == b"<Contents><Key>guest1/b/old</Key></Contents>"
    assert b"data/00000000" in client.ask("GET", LIST)[1]
    client.begin("list@1*1:lag")
    assert b"data/00000000" in client.ask("GET", LIST)[1]


# -- the disk


@pytest.mark.parametrize(
    ("what", "number"),
    [("full", errno.ENOSPC), ("io-error", errno.EIO), ("denied", errno.EACCES)],
)
def test_a_write_fails_as_the_kernel_would_have_it(tmp_path: Path, what: str, number: int) -> None:
    (tmp_path / "data").mkdir()
    with disk(tmp_path, Script.parse(f"put-segment@1*1:{what}")) as play:
        with pytest.raises(OSError, match=os.strerror(number)) as failed:
            os.open(tmp_path / "data" / ".guestagent-put-1", os.O_CREAT | os.O_RDWR)
        os.close(os.open(tmp_path / "data" / ".guestagent-put-2", os.O_CREAT | os.O_RDWR))
    assert failed.value.errno == number
    assert len(play.hits) == 1
    assert os.listdir(tmp_path / "data") == [".guestagent-put-2"]


def test_nothing_fails_elsewhere_or_afterwards(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    for place in (bad, good):
        place.mkdir()
        (place / "file").write_bytes(BODY)
    with disk(bad, Script.parse("get@1*0:io-error list@1*0:denied delete@1*0:read-only")):
        assert (good / "file").read_bytes() == BODY
        assert os.listdir(good) == ["file"]
        with pytest.raises(OSError, match="Input/output error"):
            (bad / "file").read_bytes()
        with pytest.raises(PermissionError), os.scandir(bad):
            pass
        with pytest.raises(OSError, match="Read-only"):
            (bad / "file").unlink()
    assert (bad / "file").read_bytes() == BODY


def test_a_file_loses_its_second_half_on_its_way(tmp_path: Path) -> None:
    (tmp_path / ".guestagent-put-1").write_bytes(BODY)
    with disk(tmp_path, Script.parse("put-manifest@1*1:cut")):
        os.link(tmp_path / ".guestagent-put-1", tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_bytes() == BODY[: len(BODY) // 2]


@pytest.mark.parametrize(("what", "found"), [("less", BODY[:100]), ("flip", BODY[:100] + b"1" + BODY[101:])])
def test_a_file_is_another_one_for_a_while(tmp_path: Path, what: str, found: bytes) -> None:
    (file := tmp_path / "file").write_bytes(BODY)
    with disk(tmp_path, Script.parse(f"get@2*1:{what} get@4*0:{what}")) as play:
        assert [file.read_bytes() for _ in range(5)] == [BODY, found, BODY, found, found]
    assert file.read_bytes() == BODY
    assert (len(play.hits), play.seen[Kind.GET]) == (3, 5)


def test_a_file_that_was_replaced_meanwhile_stays(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(BODY)
    with disk(tmp_path, Script.parse("get@1*0:flip")):
        file.read_bytes()
        file.write_bytes(b"another")
    assert file.read_bytes() == b"another"


def test_the_last_step_of_a_put_fails_and_it_is_there(tmp_path: Path) -> None:
    (tmp_path / ".guestagent-put-1").write_bytes(BODY)
    with disk(tmp_path, Script.parse("put-key@1*1:lost-ack")):
        (tmp_path / ".guestagent-put-1").replace(tmp_path / "key.json")
        with pytest.raises(OSError, match="Input/output error"):
            os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        os.close(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    assert (tmp_path / "key.json").read_bytes() == BODY


def test_a_disk_stalls(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    begun = time.monotonic()
    with disk(tmp_path, Script.parse("get@1*1:stall"), stall=0.2):
        assert (tmp_path / "file").read_bytes() == BODY
    assert time.monotonic() - begun > 0.15
