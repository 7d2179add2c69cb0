"""Chains: a full backup and the incrementals on top of it, checked from manifests alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guestagent.errors import ChainBroken
from guestagent.manifest import Backup, Manifest
from guestagent.model import Kind, Version

MAX_LINKS = 1000


@dataclass(frozen=True)
class Chain:
    """The links that a restore needs, base first; checked when it is made, from manifests alone."""

    links: tuple[Backup, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.links) <= MAX_LINKS:
            raise ChainBroken(f"a chain of {len(self.links)} links", hint="take a full backup")
        _check_base(self.links[0])
        for parent, child in zip(self.links, self.links[1:], strict=False):
            check_continues(parent, child)

    @property
    def base(self) -> Backup:
        """The full backup that the chain stands on."""
        return self.links[0]

    @property
    def tip(self) -> Backup:
        """The backup that a restore of this chain gives."""
        return self.links[-1]

    @property
    def raw_size(self) -> int:
        """Bytes of all streams."""
        return sum(link.manifest.raw_size for link in self.links)

    @property
    def stored_size(self) -> int:
        """Bytes of all objects."""
        return sum(link.manifest.stored_size for link in self.links)

    def __iter__(self) -> Iterator[Backup]:
        return iter(self.links)

    def __len__(self) -> int:
        return len(self.links)


def _check_base(base: Backup) -> None:
    if base.manifest.kind is not Kind.FULL:
        raise ChainBroken(f"chain broken at {base.id}: an incremental without its parent", hint="take a full backup")


def check_continues(parent: Backup, child: Backup) -> None:
    """Raise ChainBroken unless ``child`` was taken on top of exactly ``parent``."""
    mine, its = child.manifest, parent.manifest
    if mine.parent is None or mine.parent.id != its.id:
        wrong = f"its parent is {mine.parent.id if mine.parent else 'nobody'}, not {its.id}"
    elif mine.parent.checksum != parent.checksum:
        wrong = f"the manifest of its parent {its.id} is not the one that it was taken on"
    elif mine.lsn.begin != its.lsn.end:
        wrong = f"from_lsn {mine.lsn.begin} does not continue to_lsn {its.lsn.end} of {its.id}"
    elif mine.engine != its.engine:
        wrong = f"engine {mine.engine} does not continue engine {its.engine} of {its.id}"
    elif _series(mine) != _series(its):
        wrong = f"server {mine.server_version} does not continue {its.server_version} of {its.id}"
    else:
        return
    raise ChainBroken(f"chain broken at {child.id}: {wrong}", hint="take a full backup")


def _series(manifest: Manifest) -> tuple[str, str]:
    return manifest.datastore, Version.parse(manifest.server_version).series
