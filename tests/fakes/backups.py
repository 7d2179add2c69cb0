"""Backups made by hand, for tests that need a manifest and its objects, and no tool."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from guestagent.catalog import Catalog
from guestagent.manifest import Backup, Manifest, Segment, StreamFacts, digest
from guestagent.model import BackupId, Binlog, Checkpoints, InstanceId, Kind, Lsn, backup_id

GUEST = InstanceId("guest1")
BEGIN = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


def number(count: int) -> BackupId:
    """The id that ends with ``count``."""
    return backup_id(f"00000000-0000-4000-8000-{count:012d}")


def content(owner: BackupId, index: int) -> bytes:
    """What a backup's segment holds."""
    return f"segment {index} of {owner} ".encode() * (index + 2)


def manifest(count: int, *, parent: Backup | None = None, segments: int = 3, **changes: Any) -> Manifest:
    """The manifest of backup ``count``: of a full, or of an incremental on ``parent``."""
    wanted = number(count)
    bodies = [content(wanted, index) for index in range(segments)]
    begin = parent.manifest.lsn.end if parent else 0
    made = Manifest(
        id=wanted,
        name=f"backup {count}",
        description="",
        instance_id=GUEST,
        kind=Kind.INCREMENTAL if parent else Kind.FULL,
        parent=parent.as_parent() if parent else None,
        incarnation="5ac6a8bc-1c0c-4b8b-9c3a-7b6a2a0d5a11",
        engine="mariabackup",
        tool_version="10.11.19",
        datastore="mariadb",
        server_version="10.11.19-MariaDB",
        lsn=Checkpoints(begin=Lsn(begin), end=Lsn(begin + 1000), last=Lsn(begin + 1100)),
        binlog=Binlog(file="binlog.000002", position=157, gtid="0-1-5"),
        compression="none",
        encryption=None,
        stream=StreamFacts(format="mbstream", files=1, ordered_from=None),
        started=BEGIN + timedelta(minutes=count),
        finished=BEGIN + timedelta(minutes=count, seconds=30),
        segments=tuple(Segment(index, len(body), len(body), digest(body)) for index, body in enumerate(bodies)),
    )
    return replace(made, **changes)


def store(catalog: Catalog, made: Manifest) -> Backup:
    """Put the manifest's objects, as ``manifest`` thought them up, and publish it."""
    for segment in made.segments:
        catalog.put_segment(made.instance_id, made.id, segment.index, content(made.id, segment.index), segment.sha256)
    return catalog.publish(made)


def chain(catalog: Catalog, links: int) -> list[Backup]:
    """A stored chain, base first, of the numbers from 1 on."""
    made: list[Backup] = []
    for count in range(1, links + 1):
        made.append(store(catalog, manifest(count, parent=made[-1] if made else None)))
    return made
