"""The manifest: what a backup is, as typed values, each beside the keys that it is written to and read from.

What a manifest says twice must agree.  How its bytes come about stands in ``canonical``, how a stranger's bytes are
believed in ``reading``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from guestagent.errors import Corrupt, Foreign, one_line, printable
from guestagent.manifest.canonical import MAC, SEAL, beyond, core_of, digest, merged, seal_of, sealed, timestamp
from guestagent.manifest.reading import (
    MAX_FILES,
    MAX_MANIFEST,
    MAX_SEGMENT_SIZE,
    MAX_SEGMENTS,
    MAX_TEXT,
    Reader,
    load,
)
from guestagent.model import (
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

__all__ = [
    "MAX_FILES",
    "MAX_MANIFEST",
    "MAX_SEGMENTS",
    "MAX_SEGMENT_SIZE",
    "MAX_TEXT",
    "Backup",
    "Encryption",
    "Manifest",
    "Parent",
    "Segment",
    "StreamFacts",
    "digest",
    "sealed",
    "timestamp",
]

LEFT_OUT = "left_out"
"""A key that is there only where there is something to tell."""
MAX_SPACE = (1 << 32) - 1
FORMAT = 1
"""The major format of the manifests that this code writes and the newest that it reads."""


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
    ``left_out`` are InnoDB's numbers of tablespaces that were being filled, and that no child may bring.
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
    left_out: tuple[int, ...] = ()
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
        return core_of(self._whole())

    def _whole(self) -> dict[str, Any]:
        proof = {} if self.mac is None else {MAC: self.mac}
        return merged(self.unknown, self._document() | proof)

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
            **({LEFT_OUT: list(self.left_out)} if self.left_out else {}),
        }

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest; raises Corrupt for anything that is not a whole one of a known format."""
        document = load(data)
        manifest = _parsed(document)
        if document[SEAL] != seal_of(document):
            raise Corrupt("manifest: its digest does not fit: it was damaged")
        return manifest if manifest.encryption is None else replace(manifest, as_read=core_of(document))


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


def _parsed(document: Any) -> Manifest:
    top = Reader(document)
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
        left_out=tuple(top.numbers(LEFT_OUT, most=MAX_SPACE)),
    )
    _check_agrees(manifest, top.below("sizes"))
    mac = None if manifest.encryption is None else top.sha256(MAC)
    known = manifest._document() | {SEAL: top.sha256(SEAL)} | ({} if mac is None else {MAC: mac})
    return replace(manifest, unknown=beyond(document, known), mac=mac)


def _version(text: str) -> str:
    Version.parse(text)
    return text


def _check_readable(top: Reader) -> None:
    found = top.number("format")
    if found != FORMAT:
        kind = Foreign if found > FORMAT else Corrupt
        raise kind(f"manifest of format {found}, and this version reads {FORMAT}", hint="use a newer guestagent")


def _encryption(found: Reader) -> Encryption:
    return Encryption(cipher=found.one_of("cipher", "AES-256-GCM"), sealed=found.text("sealed"))


def _parent(found: Reader) -> Parent:
    return Parent(id=found.checked("id", backup_id), location=found.text("location"), checksum=found.sha256("checksum"))


def _binlog(found: Reader) -> Binlog:
    return Binlog(file=found.text("file"), position=found.number("position"), gtid=found.text("gtid"))


def _stream(found: Reader, *, last: int) -> StreamFacts:
    return StreamFacts(
        format=found.one_of("format", "mbstream", "xbstream"),
        files=found.number("files", most=MAX_FILES),
        ordered_from=found.optional("ordered_from", lambda key: found.number(key, most=last)),
    )


def _segments(found: list[Any]) -> tuple[Segment, ...]:
    if not 0 < len(found) <= MAX_SEGMENTS:
        raise Corrupt(f"manifest with {len(found)} segments")
    return tuple(_segment(Reader(value, f"manifest: segment {index}"), index) for index, value in enumerate(found))


def _segment(found: Reader, index: int) -> Segment:
    if found.number("index") != index:
        raise Corrupt(f"manifest: segment {found.number('index')} stands where {index} belongs")
    return Segment(
        index=index,
        raw_size=found.number("raw_size", most=MAX_SEGMENT_SIZE),
        stored_size=found.number("stored_size", most=MAX_SEGMENT_SIZE),
        sha256=found.sha256("sha256"),
    )


def _check_agrees(manifest: Manifest, sizes: Reader) -> None:
    """What a manifest says twice must be the same."""
    if (sizes.number("raw"), sizes.number("stored")) != (manifest.raw_size, manifest.stored_size):
        raise Corrupt("manifest: sizes are not the sums over the segments")
    if (manifest.parent is None) is not (manifest.kind is Kind.FULL):
        raise Corrupt("manifest: a full has no parent and an incremental has one")
    if manifest.kind is Kind.FULL and manifest.lsn.begin:
        raise Corrupt("manifest: a full begins at LSN 0")
    if not manifest.lsn.begin <= manifest.lsn.end <= manifest.lsn.last:
        raise Corrupt("manifest: LSNs are out of order")
