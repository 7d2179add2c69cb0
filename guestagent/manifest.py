"""The manifest: what a backup is, as canonical JSON and as typed values.

A manifest read from a store is parsed as if a stranger had written it: every
key has a type, a range and a limit, and what it says twice must agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from guestagent.errors import Corrupt, UsageError
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
MAX_SEGMENT_SIZE = 256 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABSENT = object()
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

    Times are UTC.  ``unknown`` keeps the keys that this version does not know.
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
    encryption: None
    stream: StreamFacts
    started: datetime
    finished: datetime
    segments: tuple[Segment, ...]
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def raw_size(self) -> int:
        """Bytes of the stream that the tool wrote."""
        return sum(segment.raw_size for segment in self.segments)

    @property
    def stored_size(self) -> int:
        """Bytes of the objects in the store, without the manifest."""
        return sum(segment.stored_size for segment in self.segments)

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785 for the types used here): sorted keys, no blanks, UTF-8, no floats."""
        document = _merged(self.unknown, self._document())
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

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
            "encryption": self.encryption,
            "stream": vars(self.stream),
            "sizes": {"raw": self.raw_size, "stored": self.stored_size},
            "started": timestamp(self.started),
            "finished": timestamp(self.finished),
            "segments": [vars(segment) for segment in self.segments],
        }

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest; raises Corrupt for anything that is not one of a known format."""
        return _parsed(_load(data))


@dataclass(frozen=True)
class Backup:
    """A manifest as it lies in a store; ``checksum`` is the SHA-256 of its stored bytes."""

    manifest: Manifest
    location: str
    checksum: str

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
            "created": _to_the_second(manifest.started),
            "description": manifest.description,
            "id": manifest.id,
            "instance_id": manifest.instance_id,
            "locationRef": self.location,
            "name": manifest.name,
            "parent_id": manifest.parent.id if manifest.parent else None,
            "size": round(manifest.stored_size / 2**30, 4),
            "status": "COMPLETED",
            "updated": _to_the_second(manifest.finished),
            "type": manifest.kind.value,
            "checksum": self.checksum,
            "datastore": manifest.datastore,
            "datastore_version": str(Version.parse(manifest.server_version)),
            "from_lsn": manifest.lsn.begin,
            "to_lsn": manifest.lsn.end,
            "stored_size": manifest.stored_size,
            "raw_size": manifest.raw_size,
            "binlog": f"{binlog.file}:{binlog.position}" if binlog else None,
            "gtid": binlog.gtid if binlog else None,
            "duration": round((manifest.finished - manifest.started).total_seconds(), 1),
            "note": None,
        }


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in lower-case hex, the only digest that manifests use."""
    return hashlib.sha256(data).hexdigest()


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as in ``2026-11-22T14:00:00.125Z``; ``moment`` must be UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _to_the_second(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, object by object, so that unknown keys stay where they were."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(under, dict) and isinstance(value, Mapping)
        result[key] = _merged(under, value) if both and under is not None else value
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
            raise Corrupt(f"{self._where}: {key} is {'missing' if value is _ABSENT else f'not a {kind.__name__}'}")
        return value

    def number(self, key: str, *, most: int = MAX_LSN) -> int:
        """A whole number from 0 to ``most``."""
        value = self.take(key, int)
        if not 0 <= value <= most:
            raise Corrupt(f"{self._where}: {key} is out of range: {value}")
        return value

    def one_of(self, key: str, *choices: str) -> str:
        """A word out of ``choices``."""
        value = self.take(key, str)
        if value not in choices:
            raise Corrupt(f"{self._where}: {key} is {value!r}, not one of {', '.join(choices)}")
        return value

    def moment(self, key: str) -> datetime:
        """A UTC time in the form that ``timestamp`` writes."""
        try:
            return datetime.strptime(self.take(key, str), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise Corrupt(f"{self._where}: {key} is not a time: {error}") from error

    def checked(self, key: str, check: Callable[[str], T]) -> T:
        """A text that ``check`` accepts."""
        try:
            return check(self.take(key, str))
        except UsageError as error:
            raise Corrupt(f"{self._where}: {key}: {error.what}") from error

    def sha256(self, key: str) -> str:
        """A digest in lower-case hex."""
        value = self.take(key, str)
        if not _DIGEST.fullmatch(value):
            raise Corrupt(f"{self._where}: {key} is not a sha256")
        return value

    def number_or_none(self, key: str, *, most: int = MAX_LSN) -> int | None:
        """A whole number from 0 to ``most``, or None where it is null."""
        return None if self._value.get(key, _ABSENT) is None else self.number(key, most=most)

    def below(self, key: str) -> _Reader:
        """The object under ``key``."""
        return _Reader(self.take(key, dict), f"{self._where}: {key}")

    def below_or_none(self, key: str) -> _Reader | None:
        """The object under ``key``, or None where it is null."""
        return None if self._value.get(key, _ABSENT) is None else self.below(key)


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST:
        raise Corrupt(f"manifest of {len(data)} bytes is larger than any that this version writes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"manifest is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Corrupt("manifest is not a JSON object")
    return document


def _parsed(document: dict[str, Any]) -> Manifest:
    top = _Reader(document)
    _check_readable(top)
    engine, server, lsn = top.below("engine"), top.below("server"), top.below("lsn")
    manifest = Manifest(
        id=top.checked("id", backup_id),
        name=top.take("name", str),
        description=top.take("description", str),
        instance_id=top.checked("instance_id", instance_id),
        kind=Kind(top.one_of("type", *(kind.value for kind in Kind))),
        parent=_parent(top.below_or_none("parent")),
        incarnation=top.take("incarnation", str),
        engine=engine.one_of("name", "mariabackup", "xtrabackup"),
        tool_version=engine.checked("version", _version),
        datastore=server.one_of("datastore", "mariadb", "mysql"),
        server_version=server.checked("version", _version),
        lsn=Checkpoints(begin=Lsn(lsn.number("from")), end=Lsn(lsn.number("to")), last=Lsn(lsn.number("last"))),
        binlog=_binlog(top.below_or_none("binlog")),
        compression=top.one_of("compression", "zstd", "none"),
        encryption=None,
        stream=_stream(top.below("stream")),
        started=top.moment("started"),
        finished=top.moment("finished"),
        segments=_segments(top.take("segments", list)),
        unknown=document,
    )
    _check_agrees(manifest, top.below("sizes"))
    return manifest


def _version(text: str) -> str:
    try:
        Version.parse(text)
    except Corrupt as error:
        raise UsageError(error.what) from error
    return text


def _check_readable(top: _Reader) -> None:
    found = top.number("format")
    if found != FORMAT:
        raise Corrupt(
            f"manifest of format {found}, and this version reads format {FORMAT}", hint="use a newer guestagent"
        )
    if top.below_or_none("encryption") is not None:
        raise Corrupt("manifest of an encrypted backup, and this version reads none", hint="use a newer guestagent")


def _parent(found: _Reader | None) -> Parent | None:
    if found is None:
        return None
    return Parent(
        id=found.checked("id", backup_id), location=found.take("location", str), checksum=found.sha256("checksum")
    )


def _binlog(found: _Reader | None) -> Binlog | None:
    if found is None:
        return None
    return Binlog(file=found.take("file", str), position=found.number("position"), gtid=found.take("gtid", str))


def _stream(found: _Reader) -> StreamFacts:
    return StreamFacts(
        format=found.one_of("format", "mbstream", "xbstream"),
        files=found.number("files"),
        ordered_from=found.number_or_none("ordered_from", most=MAX_SEGMENTS),
    )


def _segments(found: list[Any]) -> tuple[Segment, ...]:
    if not 0 < len(found) <= MAX_SEGMENTS:
        raise Corrupt(f"manifest with {len(found)} segments")
    segments = tuple(_segment(_Reader(value, f"manifest: segment {index}")) for index, value in enumerate(found))
    for index, segment in enumerate(segments):
        if segment.index != index:
            raise Corrupt(f"manifest: segment {segment.index} stands where {index} belongs")
    return segments


def _segment(found: _Reader) -> Segment:
    return Segment(
        index=found.number("index"),
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
