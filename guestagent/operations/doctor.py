"""The doctor's story: may this host back up and restore?  One line a check, with the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guestagent.database import connect
from guestagent.datadir import incarnation
from guestagent.datadir.durable import explained
from guestagent.errors import Corrupt, GuestagentError
from guestagent.model import ServerFacts
from guestagent.operations.host import Host
from guestagent.operations.preflight import (
    CONNECT_TIMEOUT,
    check_grants,
    check_inside,
    check_readable,
    check_tool,
    pick_engine,
)

KEY_SIZE = 32
"""Bytes of a data key, and so of the probe that a key must wrap and open."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was found, or what is wrong and what to do about it."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(host: Host) -> list[Finding]:
    """Run every check that can be run; a failed one never keeps the others from being made."""
    server, reached = _ask(host)
    return [
        _checked("instance", lambda: f"guest_id is {host.require_instance()}"),
        _checked("state", lambda: _state(host)),
        reached,
        *(_of_server(host, server) if server else ()),
        _checked("store", lambda: _store(host)),
        _checked("key", lambda: _key(host)),
    ]


def _checked(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except GuestagentError as error:
        return Finding(name, False, error.what, error.hint)


def _ask(host: Host) -> tuple[ServerFacts | None, Finding]:
    try:
        with connect(host.database.connection, timeout=CONNECT_TIMEOUT) as database:
            server = database.facts()
    except GuestagentError as error:
        return None, Finding("server", False, error.what, error.hint)
    return server, Finding("server", True, f"{server.datastore} {server.version_text} on {server.datadir}")


def _of_server(host: Host, server: ServerFacts) -> Iterator[Finding]:
    try:
        engine = pick_engine(host, server)
    except GuestagentError as error:
        yield Finding("engine", False, error.what, error.hint)
        return
    yield Finding("engine", True, engine.name)

    def grants() -> str:
        check_grants(engine, server)
        return f"{server.account} may take backups"

    yield _checked("grants", grants)
    yield _checked("tool", lambda: f"{engine.tool} {check_tool(engine, server.version)}")
    yield _checked("datadir", lambda: _datadir(server.datadir))
    yield _checked("lineage", lambda: _lineage(host, server.datadir))
    yield _checked("disk", lambda: _disk(server.datadir))


def _state(host: Host) -> str:
    with host.scratch() as path:
        return f"{path.parent.parent} is writable"


def _datadir(datadir: Path) -> str:
    check_readable(datadir)
    check_inside(datadir)
    return f"{datadir} is readable"


def _lineage(host: Host, datadir: Path) -> str:
    own = incarnation.read(datadir)
    if own is None or own.instance_id != host.instance:
        return "no backup of this server yet: the next one must be a full"
    restored = f", restored from {own.restored_from}" if own.restored_from else ""
    return f"incarnation {own.id}{restored}, {len(own.history)} backups on its history"


def _disk(datadir: Path) -> str:
    with explained(f"look at {datadir}"):
        state = os.statvfs(datadir)
    return f"{state.f_bavail * state.f_frsize} bytes free where the datadir is"


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


def _store(host: Host) -> str:
    return f"{host.catalog.probe(host.require_instance())}: put, get, list and delete work"
