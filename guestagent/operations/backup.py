"""The backup story: preflight, dump, publish."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from guestagent.database import with_defaults
from guestagent.datadir import durable, incarnation
from guestagent.engines import DumpFacts, DumpRequest, Flaw
from guestagent.errors import BadLuck, ChainBroken, Corrupt, GuestagentError, NotFound, ToolError
from guestagent.manifest import MAX_TEXT, Backup, Manifest
from guestagent.model import BackupId, Kind, Version
from guestagent.operations import checkpoint, left_out, open_files, remade
from guestagent.operations.host import Host, cores, team, unwritable
from guestagent.operations.preflight import Preflight, check_inside, preflight
from guestagent.operations.stages import Stages
from guestagent.operations.sweep import sweep_own, unfinished
from guestagent.operations.verify import verify_uploads
from guestagent.progress import Span, Watch
from guestagent.streams.codec import encoder
from guestagent.streams.pace import Gate
from guestagent.streams.process import Child
from guestagent.streams.seal import Seal
from guestagent.streams.segments import Outgoing, Stored, plain, store

LOG = logging.getLogger(__name__)

DUMPS = 3
"""Dumps for one backup, at most, where the tool has bad luck: an end at the checkpoint, tables made anew or gone."""
COPIED = (".ibd", ".frm", ".MYD", ".MYI", ".MAD", ".MAI", ".CSV")
"""What a full backup's size is estimated from."""


@dataclass(frozen=True)
class BackupRequest:
    """One backup to take; ``parent`` is a backup's id, ``latest``, or None for a full.

    ``parent_checksum`` is the SHA-256 of the parent's manifest, where the requester knows it.
    """

    id: BackupId
    name: str
    description: str = ""
    parent: str | None = None
    parent_checksum: str | None = None


@dataclass(frozen=True)
class _Dumped:
    """A dump that is stored: what the tool says of it, and the tablespaces that it has left out."""

    stored: Stored
    facts: DumpFacts
    left_out: tuple[int, ...]


def backup(host: Host, request: BackupRequest, watch: Watch) -> Backup:
    """Take a backup; when it returns, the backup is restorable.  Raises, and leaves nothing, if it is not."""
    instance = host.require_instance()
    span = Span(datetime.now(tz=UTC))
    watch.phase("preflight")
    sweep_own(host)
    ready = preflight(
        host,
        instance=instance,
        wanted=request.id,
        parent=request.parent,
        parent_checksum=request.parent_checksum,
    )
    for _ in range(DUMPS - 1):
        try:
            return _attempt(host, request, ready, watch, span=span)
        except BadLuck as error:
            if not _cleared(host, host.catalog.location(instance, request.id)):
                raise
            LOG.warning("%s; dumping once more", error.what)
    return _attempt(host, request, ready, watch, span=span)


def _cleared(host: Host, location: str) -> bool:
    """Whether nothing of a failed attempt is left or may come: it has tidied up as it could, and this must be sure.

    The next dump's segments have the same keys, and a put of this one that comes late would replace one of them.
    """
    if host.catalog.sent_again:
        LOG.warning("not dumping once more, as a put that was sent again may still arrive")
        return False
    try:
        host.catalog.discard(location)
    except GuestagentError as error:
        LOG.warning("not dumping once more, as what was stored cannot be removed: %s", error)
        return False
    return True


def _attempt(host: Host, request: BackupRequest, ready: Preflight, watch: Watch, *, span: Span) -> Backup:
    instance = ready.incarnation.instance_id
    with host.scratch() as scratch, unfinished(host, host.catalog.location(instance, request.id)):
        data_key = host.catalog.new_data_key(instance, request.id)
        dumped = _dump(host, request, ready, scratch=scratch, watch=watch, data_key=data_key)
        manifest = _manifest(host, request, ready, dumped, span=span)
        return _publish(host, manifest, ready, watch, data_key=data_key)


def _dump(
    host: Host, request: BackupRequest, ready: Preflight, *, scratch: Path, watch: Watch, data_key: bytes
) -> _Dumped:
    """Run the tool and store its stream."""
    wanted = _dump_request(host, ready, scratch)
    instance = ready.incarnation.instance_id
    if checkpoint.wanted(host, incremental=ready.parent is not None):
        checkpoint.make(host, watch)
    watch.phase("dump", total=None if ready.parent else _estimate(ready.server.datadir))
    hidden = (with_defaults(host.database.connection).password,)
    stages = Stages(ready.engine, host.database, watch)
    gate = Gate(host.stream.rate_limit, watch, urgent=lambda: stages.blocking)

    def put(index: int, body: bytes, sha256: str) -> None:
        gate.let(len(body))
        host.catalog.put_segment(instance, request.id, index, body, sha256)

    argv = ready.engine.dump_argv(wanted)
    looks = Flaw.REMADE in ready.engine.flaws
    tables = remade.settled(ready.server.datadir) if looks else {}
    brought = left_out.Brought()
    form = Outgoing(
        dialect=ready.engine.stream_format,
        segment_size=host.stream.segment_size,
        encode=encoder(host.stream.compression, host.stream.level),
        close=Seal(data_key, request.id).close if data_key else plain,
        look=brought.note,
    )
    with (
        Child(argv, stream=True, on_line=stages.hear, hidden=hidden, niceness=host.database.niceness) as child,
        watch.asking(stages.check),
    ):
        source = _source(child, ready, watch, gate)
        stored = store(source, form, put=put, team=team(host, host.stream.workers), watch=watch)
    facts = ready.engine.facts(read_texts(wanted.facts_dir))
    _check_facts(facts, ready)
    if looks:
        remade.check(ready.server.datadir, tables)
    return _Dumped(stored, facts, _left_out(ready, brought.spaces, facts))


def _left_out(ready: Preflight, brought: set[int], facts: DumpFacts) -> tuple[int, ...]:
    """What a child of this backup may not bring; raises Refused if this one brings what its parent has left out."""
    if Flaw.REBUILT not in ready.engine.flaws:
        return ()
    left_out.check(ready.halves, brought)
    return left_out.find(ready.server.datadir, brought, facts.checkpoints.end)


def _dump_request(host: Host, ready: Preflight, scratch: Path) -> DumpRequest:
    option_file, target, facts = scratch / "client.cnf", scratch / "target", scratch / "facts"
    try:
        with open(option_file, "w", encoding="utf-8", opener=_private) as file:
            file.write(ready.engine.option_file(host.database.connection))
        target.mkdir(mode=0o700)
        facts.mkdir(mode=0o700)
    except OSError as error:
        raise unwritable(host.state_dir, error) from error
    return DumpRequest(
        option_file=option_file,
        target_dir=target,
        facts_dir=facts,
        since=ready.parent.manifest.lsn.end if ready.parent else None,
        parallel=host.database.parallel or cores(),
        lock_wait_timeout=host.database.lock_wait_timeout,
        extra_args=host.database.extra_args,
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def _source(
    child: Child, ready: Preflight, watch: Watch, gate: Gate
) -> Callable[[memoryview, Callable[[], bool]], int]:
    """The child's stream, whose end is an end only if the child says that all went well."""

    def read(view: memoryview, stopped: Callable[[], bool]) -> int:
        gate.heed(stopped)
        count = child.read_into(view, stopped=stopped)
        if not count and not stopped():
            _finish(child, ready, watch)
        return count

    return read


def _finish(child: Child, ready: Preflight, watch: Watch) -> None:
    """Wait for the dump's good end; raises ToolError for a bad one, and BadLuck if its words say so."""
    try:
        child.finish(watch)
    except ToolError as error:
        if ready.engine.unlucky(error.tail):
            raise BadLuck(error.what, hint=error.hint, tail=error.tail) from error
        raise
    check_confirmed(ready.engine.confirmed(child.tail), child)


def check_confirmed(confirmed: bool, child: Child) -> None:
    """Raise ToolError if a child that exited with 0 did not also say that it was successful."""
    if not confirmed:
        last = child.tail[-1] if child.tail else "nothing"
        raise ToolError(f"{child.name} exited with 0, not saying that it completed; it said: {last}", tail=child.tail)


def _check_facts(facts: DumpFacts, ready: Preflight) -> None:
    """The files of the tool decide what was dumped; raises ToolError if it is not what was asked for."""
    asked = ready.parent.manifest.lsn.end if ready.parent else 0
    if facts.checkpoints.begin != asked:
        raise ToolError(f"{ready.engine.tool} dumped from LSN {facts.checkpoints.begin}, and was asked to from {asked}")
    if Version.parse(facts.server_version).series != ready.server.version.series:
        raise ToolError(
            f"{ready.engine.tool} dumped server {facts.server_version}, and we asked {ready.server.version}",
            hint="check [database] socket, host and port",
        )


def _manifest(host: Host, request: BackupRequest, ready: Preflight, dumped: _Dumped, *, span: Span) -> Manifest:
    stored, facts = dumped.stored, dumped.facts
    return Manifest(
        id=request.id,
        name=request.name,
        description=request.description,
        instance_id=ready.incarnation.instance_id,
        kind=Kind.INCREMENTAL if ready.parent else Kind.FULL,
        parent=ready.parent.as_parent() if ready.parent else None,
        incarnation=ready.incarnation.id,
        engine=ready.engine.name,
        tool_version=str(ready.tool_version),
        datastore=ready.server.datastore,
        server_version=facts.server_version,
        lsn=facts.checkpoints,
        binlog=facts.binlog,
        compression=host.stream.compression,
        encryption=None,
        stream=stored.stream,
        started=span.began,
        finished=span.now,
        segments=stored.segments,
        left_out=dumped.left_out,
    )


def _publish(host: Host, manifest: Manifest, ready: Preflight, watch: Watch, *, data_key: bytes) -> Backup:
    """Prove what lies in the store, then make it a backup by writing its manifest.

    The datadir learns of the backup after the dump, so that no older snapshot of its disk knows it, and before
    there is anything to know.
    """
    check_inside(ready.server.datadir)  # both again: tables may have been made since
    open_files.check(ready.server.datadir, growth=0)
    watch.phase("publish", total=manifest.stored_size if host.verify_uploads == "bytes" else None)
    host.catalog.check_stored(manifest)
    if host.verify_uploads == "bytes":
        verify_uploads(host, manifest, watch, data_key=data_key)
    if ready.parent is not None:
        _check_still_there(host, ready.parent)
    watch.check()
    incarnation.write(ready.server.datadir, ready.incarnation.with_backup(manifest.id))
    return host.catalog.publish(manifest, data_key=data_key)


def _check_still_there(host: Host, parent: Backup) -> None:
    try:
        found = host.catalog.at(parent.location)
    except NotFound as error:
        raise ChainBroken(f"the parent {parent.id} was deleted during the backup", hint="take a full backup") from error
    if found.checksum != parent.checksum:
        raise ChainBroken(f"the parent {parent.id} was replaced during the backup", hint="take a full backup")


def read_texts(directory: Path) -> dict[str, str]:
    """The small text files that a tool left in a directory, or a stream brought there, by name; raises Corrupt."""
    names = (path for path in directory.iterdir() if path.name.endswith(("_checkpoints", "_info")))
    return {path.name: small_text(path) for path in names if path.is_file() and not path.is_symlink()}


def small_text(path: Path) -> str:
    """What a small text file of a tool says; raises Corrupt for one that is not small."""
    data = durable.read_small(path, most=MAX_TEXT)
    if len(data) > MAX_TEXT:
        raise Corrupt(f"{path} has more than {MAX_TEXT} bytes")
    return data.decode(errors="replace")


def _estimate(datadir: Path) -> int:
    """About how many bytes a full backup's stream will have."""
    sizes = 0
    for folder, _, names in os.walk(datadir):
        for name in names:
            if name.endswith(COPIED) or name.startswith(("ibdata", "undo")):
                try:
                    sizes += os.stat(os.path.join(folder, name)).st_size
                except OSError:
                    continue  # dropped since it was listed, or not ours to look at; the tool will say so
    return sizes
