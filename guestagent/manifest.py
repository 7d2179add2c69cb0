"""The manifest: what a backup is, as canonical JSON and as typed values.

A manifest read from a store is parsed as if a stranger had written it: every
key has a type, a range and a limit, and what it says twice must agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from guestagent.document import check_size, finite, no_number, once
from guestagent.errors import Corrupt, UsageError, one_line, printable
from guestagent.model import (
    MAX_LSN,
    BackupId,
    Binlog,
    Checkpoints,
    InstanceId,
    Kind,
    Lsn,
    Version,
    backup_id,
    instance_id,
)

FORMAT = 1
"""The major format of the manifests that this code writes and the newest that it reads."""

MAX_MANIFEST = 256 << 20
MAX_SEGMENTS = 1_000_000
MAX_FILES = 4_000_000
MAX_TEXT = 1 << 20
"""Characters of one text."""
MAX_SEGMENT_SIZE = 256 << 20

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of characters, as Python reads them from bytes that are not UTF-8; no Unicode text has them."""
_SEAL = "digest"
_MAC = "mac"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABSENT = object()
_MOST_VALUES = 6 * MAX_SEGMENTS
"""As document.check_size counts them: five a segment, and some more."""
T = TypeVar("T")


@dataclass(frozen=True)
class Parent:
    """What a child knows of its parent; ``checksum`` is the SHA-256 of the parent's manifest."""

    id: BackupId
    location: str
    checksum: str


@dataclass(frozen=True)
class Segment:
    """One stored piece of the stream: sizes in bytes, SHA-256 of the stored bytes in hex."""

    index: int
    raw_size: int
    stored_size: int
    sha256: str


@dataclass(frozen=True)
class Encryption:
    """How a backup is encrypted: the cipher, and what of the manifest only a holder of the key can read (Base64)."""

    cipher: str
    sealed: str


@dataclass(frozen=True)
class StreamFacts:
    """How the segments, joined, are to be read.

    ``format`` is mbstream or xbstream; ``files`` counts the files that it ends; from segment
    ``ordered_from`` on (None: nowhere) segments must be extracted one after the other, since
    they rename, remove or rewrite what came before.
    """

    format: str
    files: int
    ordered_from: int | None


@dataclass(frozen=True)
class Manifest:
    """What a backup is.  Written last and once; a backup exists if and only if it does.

    Times are UTC.  ``unknown`` keeps the keys that this version does not know, other than those of segments.
    ``mac`` proves, where the backup is encrypted, that a holder of its key wrote what ``core`` is the digest of;
    ``as_read`` is that digest of the bytes that were read.
    """

    id: BackupId
    name: str
    description: str
    instance_id: InstanceId
    kind: Kind
    parent: Parent | None
    incarnation: str
    engine: str
    tool_version: str
    datastore: str
    server_version: str
    lsn: Checkpoints
    binlog: Binlog | None
    compression: str
    encryption: Encryption | None
    stream: StreamFacts
    started: datetime
    finished: datetime
    segments: tuple[Segment, ...]
    unknown: Mapping[str, Any] = field(default_factory=dict)
    mac: str | None = None
    as_read: str = field(default="", compare=False, repr=False)

    @property
    def raw_size(self) -> int:
        """Bytes of the stream that the tool wrote."""
        return sum(segment.raw_size for segment in self.segments)

    @property
    def stored_size(self) -> int:
        """Bytes of the objects in the store, without the manifest."""
        return sum(segment.stored_size for segment in self.segments)

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no blanks, UTF-8, no floats; U+FFFD for what is not Unicode."""
        return sealed(self._whole())

    def core(self) -> str:
        """SHA-256 of the canonical JSON without ``digest`` and ``mac``."""
        return _core(self._whole())

    def _whole(self) -> dict[str, Any]:
        proof = {} if self.mac is None else {_MAC: self.mac}
        return _merged(self.unknown, self._document() | proof)

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "instance_id": self.instance_id,
            "type": self.kind.value,
            "parent": None if self.parent is None else vars(self.parent),
            "incarnation": self.incarnation,
            "engine": {"name": self.engine, "version": self.tool_version},
            "server": {"datastore": self.datastore, "version": self.server_version},
            "lsn": {"from": self.lsn.begin, "to": self.lsn.end, "last": self.lsn.last},
            "binlog": None if self.binlog is None else vars(self.binlog),
            "compression": self.compression,
            "encryption": None if self.encryption is None else vars(self.encryption),
            "stream": vars(self.stream),
            "sizes": {"raw": self.raw_size, "stored": self.stored_size},
            "started": timestamp(self.started),
            "finished": timestamp(self.finished),
            "segments": [vars(segment) for segment in self.segments],
        }

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest; raises Corrupt for anything that is not a whole one of a known format."""
        document = _load(data)
        manifest = _parsed(document)
        if document[_SEAL] != _seal(document):
            raise Corrupt("manifest: its digest does not fit: it was damaged")
        return manifest if manifest.encryption is None else replace(manifest, as_read=_core(document))


@dataclass(frozen=True)
class Backup:
    """A manifest as it lies in a store; ``checksum`` is the SHA-256 of its stored bytes."""

    manifest: Manifest
    location: str
    checksum: str
    data_key: bytes = field(default=b"", repr=False, compare=False)
    """What it is encrypted with, where that is and we may know it."""
    locked_by: str = ""
    """The id of the key that it takes to read it, where that is not here."""

    @property
    def id(self) -> BackupId:
        """The backup's id."""
        return self.manifest.id

    def as_parent(self) -> Parent:
        """What a child of this backup notes of it."""
        return Parent(id=self.id, location=self.location, checksum=self.checksum)

    def properties(self) -> dict[str, Any]:
        """What users see of it: the names of Trove's client first, then ours."""
        manifest = self.manifest
        binlog = manifest.binlog
        return {
            "created": timestamp(manifest.started)[:19] + "Z",
            "description": one_line(manifest.description),
            "id": manifest.id,
            "instance_id": manifest.instance_id,
            "locationRef": self.location,
            "name": one_line(manifest.name),
            "parent_id": manifest.parent.id if manifest.parent else None,
            "size": round(manifest.stored_size / 2**30, 4),
            "status": "COMPLETED",
            "updated": timestamp(manifest.finished)[:19] + "Z",
            "type": manifest.kind.value,
            "checksum": self.checksum,
            "datastore": manifest.datastore,
            "datastore_version": str(Version.parse(manifest.server_version)),
            "from_lsn": manifest.lsn.begin,
            "to_lsn": manifest.lsn.end,
            "stored_size": manifest.stored_size,
            "raw_size": manifest.raw_size,
            "binlog": one_line(f"{binlog.file}:{binlog.position}") if binlog else None,
            "gtid": printable(binlog.gtid) if binlog else None,
            "duration": round((manifest.finished - manifest.started).total_seconds(), 1),
            "note": None,
        }


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in lower-case hex, the only digest that manifests use."""
    return hashlib.sha256(data).hexdigest()


def sealed(document: Mapping[str, Any]) -> bytes:
    """A manifest's document as it is stored: canonical, with the SHA-256 of all the rest under ``digest``.

    Nothing else could tell a damaged name or time of the newest link; those below it are proven by
    their children.
    """
    return _canonical({**document, _SEAL: _seal(document)})


def _seal(document: Mapping[str, Any]) -> str:
    return digest(_canonical({key: value for key, value in document.items() if key != _SEAL}))


def _core(document: Mapping[str, Any]) -> str:
    return digest(_canonical({key: value for key, value in document.items() if key not in (_SEAL, _MAC)}))


def _canonical(document: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except RecursionError as error:
        raise Corrupt("manifest: it is nested too deeply") from error
    return _SURROGATE.sub("\ufffd", text).encode()


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as in ``2026-11-22T14:00:00.125Z``; ``moment`` must be UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, object by object, so that unknown keys stay where they were."""
    result = dict(below)
    for key, value in above.items():
        under = below.get(key)
        result[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


def _beyond(found: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What ``found`` has and ``known`` has not, object by object."""
    result = {key: value for key, value in found.items() if key not in known}
    for key in found.keys() & known.keys():
        if isinstance(found[key], dict) and (below := _beyond(found[key], known[key])):
            result[key] = below
    return result


class _Reader:
    """Reads one JSON object of a manifest, key by key, with errors that name the key."""

    def __init__(self, value: Any, where: str = "manifest") -> None:
        if not isinstance(value, dict):
            raise Corrupt(f"{where} is not a JSON object")
        self._value = value
        self._where = where

    def take(self, key: str, kind: type[T]) -> T:
        """The value of ``key``, which must be exactly of type ``kind``."""
        value = self._value.get(key, _ABSENT)
        if type(value) is not kind:
            wrong = "missing" if value is _ABSENT else f"of type {type(value).__name__}, not {kind.__name__}"
            raise Corrupt(f"{self._where}: {key} is {wrong}")
        return value

    def text(self, key: str) -> str:
        """A text that can be shown and written again."""
        value = self.take(key, str)
        if len(value) > MAX_TEXT:
            raise Corrupt(f"{self._where}: {key} has more than {MAX_TEXT} characters")
        if _SURROGATE.search(value):
            raise Corrupt(f"{self._where}: {key} is not Unicode text")
        return value

    def number(self, key: str, *, most: int = MAX_LSN) -> int:
        """A whole number from 0 to ``most``."""
        value = self.take(key, int)
        if not 0 <= value <= most:
            raise Corrupt(f"{self._where}: {key} is out of range: {value}")
        return value

    def one_of(self, key: str, *choices: str) -> str:
        """A word out of ``choices``."""
        value = self.text(key)
        if value not in choices:
            raise Corrupt(f"{self._where}: {key} is {value[:80]!r}, not one of {', '.join(choices)}")
        return value

    def moment(self, key: str) -> datetime:
        """A UTC time in the form that ``timestamp`` writes."""
        try:
            return datetime.strptime(self.text(key), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise Corrupt(f"{self._where}: {key} is not a time: {error}") from error

    def checked(self, key: str, check: Callable[[str], T]) -> T:
        """A text that ``check`` accepts."""
        text = self.text(key)
        try:
            return check(text)
        except (UsageError, Corrupt) as error:
            raise Corrupt(f"{self._where}: {key}: {error.what}") from error

    def sha256(self, key: str) -> str:
        """A digest in lower-case hex."""
        value = self.text(key)
        if not _DIGEST.fullmatch(value):
            raise Corrupt(f"{self._where}: {key} is not a sha256")
        return value

    def below(self, key: str) -> _Reader:
        """The object under ``key``."""
        return _Reader(self.take(key, dict), f"{self._where}: {key}")

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of ``key``, or None where it is null."""
        return None if self._value.get(key, _ABSENT) is None else read(key)


def _load(data: bytes) -> Any:
    if len(data) > MAX_MANIFEST:
        raise Corrupt(f"manifest of {len(data)} bytes is larger than any that this version writes")
    try:
        check_size(data, _MOST_VALUES)
        return json.loads(
            data.decode(),
            object_pairs_hook=once,
            parse_constant=no_number,
            parse_float=finite,
        )
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"manifest is not JSON: {error}") from error


def _parsed(document: Any) -> Manifest:
    top = _Reader(document)
    _check_readable(top)
    engine, server, lsn = top.below("engine"), top.below("server"), top.below("lsn")
    segments = _segments(top.take("segments", list))
    manifest = Manifest(
        id=top.checked("id", backup_id),
        name=top.text("name"),
        description=top.text("description"),
        instance_id=top.checked("instance_id", instance_id),
        kind=Kind(top.one_of("type", *(kind.value for kind in Kind))),
        parent=top.optional("parent", lambda key: _parent(top.below(key))),
        incarnation=top.text("incarnation"),
        engine=engine.one_of("name", "mariabackup", "xtrabackup"),
        tool_version=engine.checked("version", _version),
        datastore=server.one_of("datastore", "mariadb", "mysql"),
        server_version=server.checked("version", _version),
        lsn=Checkpoints(begin=Lsn(lsn.number("from")), end=Lsn(lsn.number("to")), last=Lsn(lsn.number("last"))),
        binlog=top.optional("binlog", lambda key: _binlog(top.below(key))),
        compression=top.one_of("compression", "zstd", "none"),
        encryption=top.optional("encryption", lambda key: _encryption(top.below(key))),
        stream=_stream(top.below("stream"), last=len(segments) - 1),
        started=top.moment("started"),
        finished=top.moment("finished"),
        segments=segments,
    )
    _check_agrees(manifest, top.below("sizes"))
    mac = None if manifest.encryption is None else top.sha256(_MAC)
    known = manifest._document() | {_SEAL: top.sha256(_SEAL)} | ({} if mac is None else {_MAC: mac})
    return replace(manifest, unknown=_beyond(document, known), mac=mac)


def _version(text: str) -> str:
    Version.parse(text)
    return text


def _check_readable(top: _Reader) -> None:
    found = top.number("format")
    if found != FORMAT:
        raise Corrupt(f"manifest of format {found}, and this version reads {FORMAT}", hint="use a newer guestagent")


def _encryption(found: _Reader) -> Encryption:
    return Encryption(cipher=found.one_of("cipher", "AES-256-GCM"), sealed=found.text("sealed"))


def _parent(found: _Reader) -> Parent:
    return Parent(id=found.checked("id", backup_id), location=found.text("location"), checksum=found.sha256("checksum"))


def _binlog(found: _Reader) -> Binlog:
    return Binlog(file=found.text("file"), position=found.number("position"), gtid=found.text("gtid"))


def _stream(found: _Reader, *, last: int) -> StreamFacts:
    return StreamFacts(
        format=found.one_of("format", "mbstream", "xbstream"),
        files=found.number("files", most=MAX_FILES),
        ordered_from=found.optional("ordered_from", lambda key: found.number(key, most=last)),
    )


def _segments(found: list[Any]) -> tuple[Segment, ...]:
    if not 0 < len(found) <= MAX_SEGMENTS:
        raise Corrupt(f"manifest with {len(found)} segments")
    return tuple(_segment(_Reader(value, f"manifest: segment {index}"), index) for index, value in enumerate(found))


def _segment(found: _Reader, index: int) -> Segment:
    if found.number("index") != index:
        raise Corrupt(f"manifest: segment {found.number('index')} stands where {index} belongs")
    return Segment(
        index=index,
        raw_size=found.number("raw_size", most=MAX_SEGMENT_SIZE),
        stored_size=found.number("stored_size", most=MAX_SEGMENT_SIZE),
        sha256=found.sha256("sha256"),
    )


def _check_agrees(manifest: Manifest, sizes: _Reader) -> None:
    """What a manifest says twice must be the same."""
    if (sizes.number("raw"), sizes.number("stored")) != (manifest.raw_size, manifest.stored_size):
        raise Corrupt("manifest: sizes are not the sums over the segments")
    if (manifest.parent is None) is not (manifest.kind is Kind.FULL):
        raise Corrupt("manifest: a full has no parent and an incremental has one")
    if manifest.kind is Kind.FULL and manifest.lsn.begin:
        raise Corrupt("manifest: a full begins at LSN 0")
    if not manifest.lsn.begin <= manifest.lsn.end <= manifest.lsn.last:
        raise Corrupt("manifest: LSNs are out of order")
