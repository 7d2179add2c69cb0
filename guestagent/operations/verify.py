"""The verify story: every byte of a chain, against its manifests, without writing any of it."""

from __future__ import annotations

from collections.abc import Sequence

from guestagent.chain import Chain
from guestagent.manifest import Backup, Manifest, Segment
from guestagent.model import BackupId
from guestagent.operations.host import Host, team
from guestagent.progress import Watch
from guestagent.streams.extract import Extraction
from guestagent.streams.pace import Gate
from guestagent.streams.seal import Seal
from guestagent.streams.segments import Arrivals, Incoming, Proof, Sink, Stored, plainly


def verify(host: Host, wanted: BackupId, watch: Watch) -> Chain:
    """Fetch, hash, decompress and walk all segments of a backup's whole chain; raises the first thing wrong."""
    chain = host.catalog.chain(host.catalog.get(wanted))
    watch.phase("verify", total=chain.stored_size, links=len(chain))
    _prove(host, list(chain), watch)
    return chain


def verify_uploads(host: Host, manifest: Manifest, watch: Watch, *, data_key: bytes = b"") -> None:
    """Read back what has just been stored, before its manifest makes it a backup."""
    location = host.catalog.location(manifest.instance_id, manifest.id)
    unpublished = Backup(manifest, location, checksum="", data_key=data_key)
    _prove(host, [unpublished], watch)


def _prove(host: Host, links: Sequence[Backup], watch: Watch) -> None:
    gate = Gate(host.stream.rate_limit, watch)
    incoming = [incoming_of(host, link, Proof(dialect=link.manifest.stream.format), gate) for link in links]
    with Arrivals(incoming, team=team(host, host.restore.download_workers), watch=watch) as arrivals, gate:
        for number in range(len(links)):
            arrivals.wait_for(number)


def incoming_of(host: Host, link: Backup, sink: Sink | Extraction, gate: Gate) -> Incoming:
    """One link's way from the store, through the gate that keeps the rate limit, into a sink."""
    manifest = link.manifest

    def fetch(segment: Segment) -> bytes:
        gate.let(segment.stored_size)
        return host.catalog.fetch(link, segment)

    return Incoming(
        stored=Stored(manifest.segments, manifest.stream),
        compression=manifest.compression,
        fetch=fetch,
        sink=sink,
        label=f"backup {link.id}",
        open=Seal(link.data_key, link.id).open if link.data_key else plainly,
    )
