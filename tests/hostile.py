"""What a stranger may put where we read: every reader, what it may cost, and how it may refuse.

``READERS`` has one function from bytes for each kind of thing that is parsed; ``judged`` calls one of them and fails
unless it gives a value or raises an error of ours with one line of bounded length.
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from guestagent.datadir import incarnation, journal, layout
from guestagent.engines.facts import dump_facts, prepared_to
from guestagent.engines.optionfile import check_backed_up
from guestagent.errors import LONGEST, GuestagentError
from guestagent.jobs.record import Job, Step
from guestagent.manifest import Backup, Manifest
from guestagent.model import BackupId
from guestagent.outbox import box, stamps
from guestagent.streams.chunks import MBSTREAM, XBSTREAM
from guestagent.streams.codec import ZSTD, Buffer, decode
from guestagent.streams.extract import Extraction
from guestagent.streams.seal import Seal
from guestagent.streams.segments import Proof
from guestagent.streams.split import Splitter
from guestagent.transport.conversation import Request
from guestagent.transport.frames import PIECE, Assembler
from guestagent.wrapped import WrappedKey

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What turns the direction of text."""

Reader = Callable[[bytes], object]

KEY = bytes(range(32))
BACKUP = BackupId("00000000-0000-0000-0000-000000000001")
RAW = 64 << 10
"""Bytes that a segment is promised to have."""


def judged(reader: Reader, data: bytes) -> object:
    """What ``reader`` makes of ``data``, or the error of ours that it raises; any other error goes on."""
    try:
        return reader(data)
    except GuestagentError as error:
        check_line(str(error))
        return error


def check_line(line: str) -> None:
    """Fail unless it may stand in a log and on a terminal."""
    assert len(line) <= 2 * LONGEST + 2
    check_signs(line)


def check_signs(line: str) -> None:
    """Fail if a sign of it does more on a terminal than be read."""
    assert not {unicodedata.category(sign) for sign in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(line) & set(BIDI)


@contextmanager
def cheap(*, mebibytes: float, seconds: float) -> Iterator[None]:
    """Fail if what happens inside takes more memory at a time, or longer."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
        took, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= mebibytes * (1 << 20), f"{peak / (1 << 20):.1f} MiB"
    assert took <= seconds, f"{took:.1f} s"


def _frames(data: bytes) -> list[Request]:
    """As a listener hears it: in pieces, until the first thing that is wrong."""
    assembler, heard = Assembler(), []
    for start in range(0, len(data), PIECE):
        assembler.feed(data[start : start + PIECE])
        while (body := assembler.take()) is not None:
            heard.append(Request.of(body))
    return heard


def _step(data: bytes) -> object:
    step = Step.from_bytes(data)
    return step.percent, step.left


def _job(data: bytes) -> object:
    job = Job.from_bytes(data)
    return job.properties(), str(job), job.to_bytes()


def _manifest(data: bytes) -> object:
    manifest = Manifest.from_bytes(data)
    assert Manifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes()
    for value in Backup(manifest, "file:///store", "").properties().values():
        check_signs(str(value))
    return manifest


def _in_file(read: Callable[[Path], object], name: str) -> Reader:
    def reader(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return read(Path(place))

    return reader


def _letters(data: bytes) -> object:
    """The outbox with one file, under the name that its subject wants; what is no message is put aside."""
    subject = "x"
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        subject = str(json.loads(data[: 1 << 20])["subject"])
    return _in_file(_first_due, box._name(subject))(data)


def _first_due(place: Path) -> object:
    found = box.Outbox(place)
    letter = found.due()
    if letter is not None:
        found.put_off(letter)
        left = found.left()
        assert left is not None
        assert 0 <= left <= box.LONGEST_PUT_OFF
    return letter


def _wrapped(data: bytes) -> object:
    return WrappedKey.from_bytes(data).to_bytes()


def _sealed(data: bytes) -> object:
    return bytes(Seal(KEY, BACKUP).open(0, True, data, memoryview(bytearray(len(data)))))


def _zstd(data: bytes) -> object:
    into = bytearray(RAW)
    decode(data, ZSTD, memoryview(into))
    return into


def _walked(dialect: str) -> Reader:
    def reader(data: bytes) -> object:
        proof = Proof(dialect=dialect)
        proof.apply(memoryview(data), Buffer(4096))
        proof.check_complete(1)
        return proof

    return reader


def _extracted(dialect: str) -> Reader:
    def reader(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as above:
            (target := Path(above, "in")).mkdir()
            (outside := Path(above, "out")).write_bytes(b"out")
            try:
                with Extraction(target, dialect=dialect) as extraction:
                    extraction.apply(memoryview(data), Buffer(1 << 20), ordered=True)
                    extraction.check_complete(1)
                    return extraction
            finally:
                assert outside.read_bytes() == b"out"
                assert {path.name for path in Path(above).iterdir()} == {"in", "out"}
                assert not any(path.is_symlink() for path in target.rglob("*"))

    return reader


def _split(dialect: str) -> Reader:
    def reader(data: bytes) -> object:
        rest = memoryview(data)

        def read(view: memoryview) -> int:
            nonlocal rest
            count = min(len(view), len(rest))
            view[:count] = rest[:count]
            rest = rest[count:]
            return count

        splitter = Splitter(read, dialect=dialect, segment_size=4096)
        buffer, count = splitter.buffer(), 0
        while splitter.take(buffer) is not None:
            count += 1
        return count

    return reader


def _facts(data: bytes) -> object:
    text = data.decode(errors="replace")
    with suppress(GuestagentError):
        prepared_to({"xtrabackup_checkpoints": text})
    return dump_facts({"xtrabackup_checkpoints": text, "xtrabackup_info": text})


JSON: Mapping[str, Reader] = {
    "manifest": _manifest,
    "wrapped key": _wrapped,
    "job": _job,
    "step": _step,
    "letter": _letters,
    "stamps": _in_file(lambda place: stamps.Stamps(place / "stamps").next(), "stamps"),
    "incarnation": _in_file(incarnation.read, incarnation.FILE),
    "journal": _in_file(journal.read, f"{layout.OURS}/{layout.JOURNAL}"),
    "frame": lambda data: _frames(b"\x01" + len(data).to_bytes(4, "big") + data),
}
"""Readers of JSON."""

READERS: Mapping[str, Reader] = {
    **JSON,
    "frames": _frames,
    "sealed segment": _sealed,
    "zstd": _zstd,
    "mbstream, proven": _walked(MBSTREAM),
    "xbstream, proven": _walked(XBSTREAM),
    "mbstream, extracted": _extracted(MBSTREAM),
    "xbstream, extracted": _extracted(XBSTREAM),
    "mbstream, split": _split(MBSTREAM),
    "xbstream, split": _split(XBSTREAM),
    "facts": _facts,
    "option file": lambda data: check_backed_up(data.decode(errors="replace"), Path("/srv/base")),
}
"""All readers."""


def samples() -> dict[str, bytes]:
    """For readers of JSON, a document that each takes."""
    from tests.manifests import a_manifest  # noqa: PLC0415

    moment = "2026-11-22T14:00:00.125Z"
    job = {
        "format": 1, "id": BACKUP, "kind": "backup", "request": {"name": "x"}, "origin": "rpc", "state": "failed",
        "created": moment, "deadline": None, "started": moment, "finished": moment, "phase": "dump", "runner": "1",
        "failure": {"code": "failed", "what": "x", "hint": "", "exit_status": 1}, "result": {}, "told": False,
        "notification": {},
    }  # fmt: skip
    request = {"ctxt": {}, "message": {"method": "ping"}, "server": None, "call": True, "monitor": 30}
    documents: dict[str, Any] = {
        "wrapped key": {"format": 1, "key_id": "file:00", "wrapped": "AAAA"},
        "job": job,
        "step": {"phase": "dump", "done": 5, "total": 10, "link": 1, "links": 1, "rate": 1.5},
        "letter": {"format": 1, "number": 1, "subject": "x", "method": "m", "arguments": {}, "again": [5.0]},
        "stamps": {"format": 1, "reserved": 5.0},
        "incarnation": {
            "format": 1, "id": BACKUP, "instance_id": "guest1", "restored_from": None, "history": [BACKUP],
        },
        "journal": {
            "format": 1, "phase": "out", "incoming": layout.BASE, "outgoing": f"{layout.KEPT}x", "old": [], "new": [],
        },
        "frame": request,
    }  # fmt: skip
    return {"manifest": a_manifest().to_bytes()} | {name: json.dumps(one).encode() for name, one in documents.items()}
