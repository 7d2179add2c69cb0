"""The doctor's story: may this host back up and restore?  One line a check, with the remedy.

What is wrong fails.  What works, and would not for long or not for everything, is a warning: it has a remedy, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from guestagent.chain import Chain
from guestagent.database import connect
from guestagent.datadir import incarnation
from guestagent.datadir.durable import explained
from guestagent.errors import Corrupt, GuestagentError
from guestagent.model import InstanceId, ServerFacts
from guestagent.operations import checkpoint, open_files, sockets
from guestagent.operations.host import Host
from guestagent.operations.plan import space_needed
from guestagent.operations.preflight import (
    CONNECT_TIMEOUT,
    LATEST,
    check_grants,
    check_inside,
    check_readable,
    check_tool,
    choose_parent,
    pick_engine,
)
from guestagent.streams.limits import MORE_FILES

KEY_SIZE = 32
"""Bytes of a data key, and so of the probe that a key must wrap and open."""

FILES_WARNED = 0.8
"""The share of the files that a backup may hold open from which on the tables are nearly too many."""

LEAST_STATE = 16 << 20
"""Bytes that state_dir must have free: the records of jobs, and what a tool writes beside its stream."""

SKEW_WARNED = timedelta(seconds=60)
SKEW_REFUSED = timedelta(minutes=15)
"""By how much a clock may be wrong before S3 takes no signature of it."""

Holder = Callable[[Path], str | None]
"""What holds the host's lock, which lies in a state_dir, if anything does."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was found, or what is wrong and what to do about it; a warning is ok with that."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(host: Host, holder: Holder) -> list[Finding]:
    """Run every check that can be run; a failed one never keeps the others from being made."""
    server, reached = _ask(host)
    store = list(_of_store(host))
    return [
        _checked("instance", lambda: f"guest_id is {host.require_instance()}"),
        _checked("state", lambda: _state(host)),
        _checked("lock", lambda: _lock(host, holder)),
        reached,
        *(_socket() if sockets.is_systemds() else ()),
        *(_of_server(host, server, store_answers=any(finding.ok for finding in store)) if server else ()),
        *store,
        _checked("key", lambda: _key(host)),
    ]


def _checked(name: str, check: Callable[[], str]) -> Finding:
    return _found(name, lambda: Finding(name, True, check()))


def _found(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except GuestagentError as error:
        return Finding(name, False, error.what, error.hint)


def _ask(host: Host) -> tuple[ServerFacts | None, Finding]:
    try:
        with connect(host.database.connection, timeout=CONNECT_TIMEOUT) as database:
            server = database.facts()
    except GuestagentError as error:
        return None, Finding("server", False, error.what, error.hint)
    return server, Finding("server", True, f"{server.datastore} {server.version_text} on {server.datadir}")


def _of_server(host: Host, server: ServerFacts, *, store_answers: bool) -> Iterator[Finding]:
    try:
        engine = pick_engine(host, server)
    except GuestagentError as error:
        yield Finding("engine", False, error.what, error.hint)
        return
    yield Finding("engine", True, engine.name)

    def grants() -> str:
        check_grants(engine, server)
        if checkpoint.wanted(host, incremental=True):
            checkpoint.check(host, server)
        return f"{server.account} may take backups"

    yield _checked("grants", grants)
    yield _checked("tool", lambda: f"{engine.tool} {check_tool(engine, server.version)}")
    yield _checked("datadir", lambda: _datadir(server.datadir))
    yield _found("files", lambda: _files(server.datadir))
    yield _checked("lineage", lambda: _lineage(host, server.datadir))
    yield _found("disk", lambda: _disk(host, server.datadir, store_answers=store_answers))


def _of_store(host: Host) -> Iterator[Finding]:
    """Whether it may be used; and, where it answers at all, what that tells of it."""
    try:
        instance = host.require_instance()
        ahead = host.catalog.clock_ahead(instance)
    except GuestagentError as error:
        yield Finding("store", False, error.what, error.hint)
        return
    works = _checked("store", lambda: f"{host.catalog.probe(instance)}: put, get, list and delete work")
    yield works
    if ahead is not None:
        yield _clock(ahead)
    if works.ok:
        yield _found("conditional-put", lambda: _conditional_put(host, instance))


def _state(host: Host) -> str:
    with host.scratch() as path:
        free = _free(path)
    if free < LEAST_STATE:
        raise GuestagentError(
            f"state_dir {host.state_dir} has {free} bytes free, and needs {LEAST_STATE}", hint="make room there"
        )
    return f"{host.state_dir} is writable, {free} bytes free"


def _lock(host: Host, holder: Holder) -> str:
    who = holder(host.state_dir)
    return f"held by {who}: other jobs wait, or are told that this host is busy" if who else "free: no job runs"


def _datadir(datadir: Path) -> str:
    check_readable(datadir)
    check_inside(datadir)
    return f"{datadir} is readable"


def _files(datadir: Path) -> Finding:
    """Whether all tables can be held open: a warning before it is too late."""
    found = open_files.look(datadir)
    return Finding("files", found.share <= 1, str(found), MORE_FILES if found.share >= FILES_WARNED else "")


def _socket() -> Iterator[Finding]:
    """Whether only a start command starts the server."""
    try:
        units = " and ".join(sockets.listening())
    except GuestagentError as error:
        yield Finding("socket", True, f"whether systemd starts a server for any connection is not known: {error.what}")
        return
    if units:
        told = f"{units} may start a restored server with its events and replication on, for any client's connection"
        yield Finding("socket", True, told, f"systemctl disable --now {units.replace(' and ', ' ')}")
    else:
        yield Finding("socket", True, "no socket of systemd's starts a server")


def _lineage(host: Host, datadir: Path) -> str:
    own = incarnation.read(datadir)
    if own is None or own.instance_id != host.instance:
        return "no backup of this server yet: the next one must be a full"
    restored = f", restored from {own.restored_from}" if own.restored_from else ""
    return f"incarnation {own.id}{restored}, {len(own.history)} backups on its history"


def _disk(host: Host, datadir: Path, *, store_answers: bool) -> Finding:
    """Room beside the data that is there, which a restore keeps until the restored server has answered."""
    free = _free(datadir)
    told = f"{free} bytes free where the datadir is"
    try:
        newest = _newest(host, datadir) if store_answers else None
    except GuestagentError as error:
        return Finding("disk", True, f"{told}; what a restore needs is not known: {error.what}", error.hint)
    if newest is None:
        return Finding("disk", True, told)
    needed = space_needed(newest, host.restore.work_dir)
    told += f"; a restore of the newest backup, {newest.tip.id}, needs {needed}"
    return Finding("disk", True, told, "" if free >= needed else "make room, or restore to another disk or host")


def _newest(host: Host, datadir: Path) -> Chain | None:
    """The chain of the newest backup of this server, if it has any."""
    own = incarnation.read(datadir)
    if own is None or own.instance_id != host.instance or not own.history:
        return None
    newest = choose_parent(host, LATEST, own)
    assert newest is not None
    return host.catalog.chain(newest)


def _free(path: Path) -> int:
    with explained(f"look at {path}"):
        state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def _clock(ahead: timedelta) -> Finding:
    off, side = abs(ahead), "behind" if ahead > timedelta() else "ahead of"
    if off <= SKEW_WARNED:
        return Finding("clock", True, f"within {SKEW_WARNED.seconds} s of the store's")
    told = f"this host's clock is {off.total_seconds():.0f} s {side} the store's"
    if off <= SKEW_REFUSED:
        return Finding("clock", True, told, "synchronise it, such as with chrony, before the store refuses requests")
    return Finding("clock", False, f"{told}, too far for S3 to take requests", "synchronise it, such as with chrony")


def _conditional_put(host: Host, instance: InstanceId) -> Finding:
    if host.catalog.has_conditional_put(instance):
        return Finding("conditional-put", True, "the store itself keeps a manifest from being overwritten")
    return Finding(
        "conditional-put",
        True,
        "the store has none: of two that publish a backup of one id at the same moment, one may overwrite the other",
        "give every host a guest_id of its own and every backup a new id, or use another store",
    )


def _key(host: Host) -> str:
    """Whether new backups can be encrypted, and opened again."""
    key = host.keys.current
    if key is None:
        return "none is configured: new backups are not encrypted"
    probe, context = os.urandom(KEY_SIZE), {"purpose": "guestagent doctor"}
    if key.unwrap(key.wrap(probe, context), context) != probe:
        raise Corrupt(f"key {key.id} does not give back what it wrapped", hint="use another key")
    others = len(host.keys.old)
    return f"new backups are encrypted with {key.id}" + (f", {others} old keys are at hand" if others else "")
