"""Manifests to test with: a full, and links on top of it, with small made-up segments."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from guestagent.manifest import Backup, Manifest, Segment, StreamFacts, digest
from guestagent.model import Binlog, Checkpoints, Kind, Lsn, backup_id, instance_id

ROOT = "file:///srv/backups"
STARTED = datetime(2026, 11, 22, 14, 0, 0, 125000, tzinfo=UTC)


def a_manifest(number: int = 0, **changes: Any) -> Manifest:
    """A full backup's manifest; ``number`` tells it from others."""
    whole = Manifest(
        id=backup_id(str(uuid.UUID(int=number + 1))),
        name=f"backup{number}",
        description="",
        instance_id=instance_id("guest1"),
        kind=Kind.FULL,
        parent=None,
        incarnation=str(uuid.UUID(int=0)),
        engine="mariabackup",
        tool_version="10.11.19",
        datastore="mariadb",
        server_version="10.11.19-MariaDB-0+deb12u1",
        lsn=lsns(0, 100, 110),
        binlog=Binlog(file="binlog.000001", position=342, gtid="0-1-7"),
        compression="zstd",
        encryption=None,
        stream=StreamFacts(format="mbstream", files=2, ordered_from=None),
        started=STARTED,
        finished=STARTED + timedelta(seconds=90),
        segments=(Segment(0, 4000, 1000, digest(b"0")), Segment(1, 500, 200, digest(b"1"))),
    )
    return replace(whole, **changes)


def lsns(begin: int, end: int, last: int) -> Checkpoints:
    return Checkpoints(begin=Lsn(begin), end=Lsn(end), last=Lsn(last))


def stored(manifest: Manifest, root: str = ROOT) -> Backup:
    """The manifest as it would lie in a store."""
    location = f"{root}/{manifest.instance_id}/{manifest.id}"
    return Backup(manifest, location, digest(manifest.to_bytes()))


def child_of(parent: Backup, number: int, **changes: Any) -> Backup:
    """An incremental on ``parent``."""
    begin = parent.manifest.lsn.end
    link = a_manifest(
        number, kind=Kind.INCREMENTAL, parent=parent.as_parent(), lsn=lsns(begin, begin + 100, begin + 110)
    )
    return stored(replace(link, **changes))


def links_of(count: int) -> list[Backup]:
    """A chain, base first."""
    links = [stored(a_manifest())]
    for number in range(1, count):
        links.append(child_of(links[-1], number))
    return links
