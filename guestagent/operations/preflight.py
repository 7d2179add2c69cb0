"""Before a backup: may it be taken, and would it be worth anything?  All of it before a byte moves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from guestagent.chain import Chain
from guestagent.database import connect
from guestagent.datadir import incarnation
from guestagent.datadir.incarnation import Incarnation
from guestagent.engines import Engine, Flaw, engine_for, engine_named
from guestagent.errors import Corrupt, DatabaseError, NotFound, Refused
from guestagent.manifest import Backup
from guestagent.model import BackupId, InstanceId, ServerFacts, Version, backup_id
from guestagent.operations import checkpoint, left_out, open_files
from guestagent.operations.host import Host
from guestagent.streams.process import output_of

LATEST = "latest"
CONNECT_TIMEOUT = 10.0
BACKTICK = "@0060"
"""As files have it in their names: https://mariadb.com/kb/en/identifier-to-file-name-mapping/."""
LOCKED = (".MAD", ".MYD", ".CSV", ".ARZ")
"""The data of tables that the tool locks while it copies them."""


@dataclass(frozen=True)
class Preflight:
    """What a backup can rely on; ``halves`` are tables that it must not bring."""

    engine: Engine
    server: ServerFacts
    tool_version: Version
    parent: Backup | None
    incarnation: Incarnation
    halves: left_out.Halves


def preflight(
    host: Host, *, instance: InstanceId, wanted: BackupId, parent: str | None, parent_checksum: str | None = None
) -> Preflight:
    """Check everything that can be checked before a dump; raises the first reason against it.

    ``parent`` is a backup's id, ``latest`` or None for a full.
    """
    if host.catalog.exists(host.catalog.location(instance, wanted)):
        raise Refused(f"backup {wanted} exists already", hint="use another id")
    with connect(host.database.connection, timeout=CONNECT_TIMEOUT) as database:
        server = database.facts()
    engine = pick_engine(host, server)
    tool_version = check_tool(engine, server.version)
    check_grants(engine, server)
    check_readable(server.datadir)
    check_inside(server.datadir)
    if Flaw.BACKTICKS in engine.flaws:
        check_names(server.datadir)
    open_files.check(server.datadir)
    own = incarnation.read(server.datadir)
    chosen = choose_parent(host, parent, own)
    if chosen is not None:
        check_known(chosen, parent_checksum)
        check_parent(host, chosen, server=server, engine=engine, own=own, instance=instance)
    if checkpoint.wanted(host, incremental=chosen is not None):
        checkpoint.check(host, server)
    return Preflight(
        engine=engine,
        server=server,
        tool_version=tool_version,
        parent=chosen,
        incarnation=own if own and own.instance_id == instance else incarnation.fresh(instance),
        halves=left_out.halves(server.datadir, chosen.manifest) if chosen is not None else {},
    )


def pick_engine(host: Host, server: ServerFacts) -> Engine:
    """The configured engine, or the server's own; raises Refused if the two do not fit."""
    if host.database.engine == "auto":
        return engine_for(server)
    engine = engine_named(host.database.engine)
    if engine.datastore != server.datastore:
        raise Refused(f"engine {engine.name} does not back up {server.datastore} servers", hint="set engine = auto")
    return engine


def tool_version_of(engine: Engine) -> Version:
    """The version of the installed tool; raises ToolError if there is none."""
    return Version.parse(output_of(engine.version_argv()))


def check_tool(engine: Engine, server: Version) -> Version:
    """The tool's version; raises Refused unless it is of the server's series."""
    found = tool_version_of(engine)
    if found.series != server.series:
        raise Refused(
            f"{engine.tool} {found} is of another series than the server's {server}",
            hint=f"install {engine.tool} {server.series}",
        )
    return found


def check_grants(engine: Engine, server: ServerFacts) -> None:
    """Raise DatabaseError that names every privilege that is missing, and the GRANT to type."""
    missing = engine.missing_grants(server)
    if missing:
        raise DatabaseError(
            f"{server.account} lacks {', '.join(missing)}",
            hint=f"GRANT {', '.join(missing)} ON *.* TO {server.account}",
        )


def check_readable(datadir: Path) -> None:
    """Raise Refused unless this process may read the server's files and write its mark beside them."""
    probe = datadir / "ibdata1"
    if not os.access(datadir, os.R_OK | os.W_OK | os.X_OK) or (probe.exists() and not os.access(probe, os.R_OK)):
        raise Refused(f"datadir {datadir} is not ours to read", hint="run as root or as the server's user")


def check_inside(datadir: Path) -> None:
    """Raise Refused if a table lies outside the datadir and would not come back as it was.

    The tools bring those of InnoDB back inside, where servers crash when they are altered, and leave out those of
    Aria.  Those of MyISAM come back inside and whole.
    """
    found = sorted(_outside(datadir))
    if found:
        raise Refused(
            f"{len(found)} tables lie outside the datadir, {found[0]} among them",
            hint="make them anew without DATA DIRECTORY",
        )


def _outside(datadir: Path) -> set[str]:
    """Tables, as DATABASE/TABLE in the words of the filesystem, whose files a link leads to."""
    return {
        str(path.relative_to(datadir).with_suffix(""))
        for path in datadir.glob("*/*")
        if path.suffix == ".isl" or (path.suffix in (".MAD", ".MAI") and path.is_symlink())
    }


def check_names(datadir: Path) -> None:
    """Raise Refused for a table that mariabackup 10.11 cannot lock: it does not double the backticks of a name.

    It locks all but those of InnoDB, one by one, and ends with a syntax error at such a one.
    """
    found = sorted(str(path.relative_to(datadir)) for path in datadir.glob("*/*") if _cannot_be_locked(path))
    if found:
        raise Refused(
            f"{len(found)} tables have a backtick in their name, and the tool cannot lock them: {found[0]} is of one",
            hint="rename them, or make them InnoDB's",
        )


def _cannot_be_locked(path: Path) -> bool:
    return path.suffix in LOCKED and BACKTICK in f"{path.parent.name}/{path.name}"


def choose_parent(host: Host, wanted: str | None, own: Incarnation | None) -> Backup | None:
    """The parent that was asked for; ``latest`` is the newest backup that this datadir has passed through."""
    if wanted is None:
        return None
    if wanted != LATEST:
        return host.catalog.get(backup_id(wanted))
    for candidate in reversed(own.history if own else ()):
        try:
            return host.catalog.get(candidate)
        except NotFound:
            continue
    raise NotFound("no backup of this server to continue", hint="take a full backup first")


def check_known(backup: Backup, checksum: str | None) -> Backup:
    """The backup, if its manifest is the one that the requester knows; raises Corrupt otherwise.

    ``checksum`` may be the beginning of one: the tables of Trove have room for 32 digits.
    """
    if checksum and not backup.checksum.startswith(checksum.lower()):
        raise Corrupt(
            f"the manifest of {backup.id} has checksum {backup.checksum}, and the request says {checksum}",
            hint="somebody has replaced it, or the request means another backup",
        )
    return backup


def check_parent(
    host: Host,
    parent: Backup,
    *,
    server: ServerFacts,
    engine: Engine,
    own: Incarnation | None,
    instance: InstanceId,
) -> Chain:
    """The parent's chain; raises unless an incremental on it would be whole and true."""
    chain = host.catalog.chain(parent)
    incarnation.check_parent(own, parent.id, instance_id=instance)
    manifest = parent.manifest
    if manifest.engine != engine.name:
        raise _unfit(parent, f"was taken by {manifest.engine}, and this server is backed up by {engine.name}")
    theirs = Version.parse(manifest.server_version)
    if theirs.series != server.version.series:
        raise _unfit(parent, f"is of server {theirs}, and the server is now {server.version}")
    if server.lsn < manifest.lsn.last:
        raise _unfit(parent, f"ends at LSN {manifest.lsn.last}, and the server is only at {server.lsn}")
    for link in chain:
        check_whole(host, link)
    return chain


def check_whole(host: Host, link: Backup) -> None:
    """Raise Corrupt if objects of a link are missing, without which nothing that stands on it can be restored."""
    try:
        host.catalog.check_whole(link)
    except Corrupt as error:
        raise Corrupt(error.what, hint="take a full backup") from error


def _unfit(parent: Backup, why: str) -> Refused:
    return Refused(f"backup {parent.id} {why}", hint="take a full backup")
