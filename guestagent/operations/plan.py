"""The plan of a restore: what would be done, with what, where; and the reasons against it, before any of it."""

from __future__ import annotations

import logging
import os
import pwd
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guestagent.catalog import locked
from guestagent.chain import Chain
from guestagent.database import answers
from guestagent.datadir.place import Place, look
from guestagent.engines import Engine, engine_named
from guestagent.errors import ConfigError, Corrupt, DatabaseError, GuestagentError, Refused, StorageDenied
from guestagent.manifest import Backup
from guestagent.model import Version, backup_id
from guestagent.operations.host import Host
from guestagent.operations.preflight import check_known, tool_version_of

LOG = logging.getLogger(__name__)

SLACK = 64 << 20
"""Bytes that prepare needs beside the data: its own redo log and temporary tablespace."""


@dataclass(frozen=True)
class RestoreRequest:
    """One restore; ``source`` is a backup's id or its location.

    ``datadir`` None means the configured one.  ``start`` None means: if a server ran there before.
    ``replace`` lets it take the place of data, ``pristine`` only of such as no user has put there.
    ``checksum`` is the SHA-256 of the manifest that must be the one found, if that is known.
    ``accept_unencrypted`` is the id of a backup that may be restored although anybody may have written it.
    """

    source: str
    datadir: Path | None = None
    replace: bool = False
    start: bool | None = None
    checksum: str | None = None
    pristine: bool = False
    accept_unencrypted: str | None = None


@dataclass(frozen=True)
class Plan:
    """A restore that has been thought through; ``against`` are the reasons not to do it."""

    chain: Chain
    engine: Engine
    tool_version: Version
    place: Place
    work_dir: Path | None
    start: bool
    os_user: str
    against: tuple[GuestagentError, ...]
    whole: bool | None = None
    """Whether all objects are in the store, by their sizes; None: it does not let us look."""

    @property
    def base_space(self) -> int:
        """Bytes that the new datadir may grow to."""
        return _base_space(self.chain)

    @property
    def links_space(self) -> int:
        """Bytes that the incrementals need until they are applied."""
        return _links_space(self.chain)

    @property
    def needed_space(self) -> int:
        """Bytes needed on the target's filesystem."""
        return space_needed(self.chain, self.work_dir)

    def check(self) -> None:
        """Raise the first reason against it."""
        for reason in self.against:
            raise reason

    def properties(self) -> dict[str, Any]:
        """What a person wants to read of it."""
        tip = self.chain.tip.manifest
        return {
            "backup_id": tip.id,
            "name": tip.name,
            "instance_id": tip.instance_id,
            "chain": [link.id for link in self.chain],
            "links": len(self.chain),
            "download": self.chain.stored_size,
            "raw_size": self.chain.raw_size,
            "objects": sum(len(link.manifest.segments) for link in self.chain),
            "objects_whole": self.whole,
            "space_needed": self.needed_space,
            "space_free": self.place.free,
            "datadir": str(self.place.path),
            "holds_now": self.place.size,
            "server_running": self.place.server_running,
            "datastore": tip.datastore,
            "datastore_version": tip.server_version,
            "engine": f"{self.engine.name} {self.tool_version}",
            "steps": self.steps(),
            "refused": [str(reason) for reason in self.against],
        }

    def steps(self) -> list[str]:
        """The story, in the order in which it would be told."""
        target = self.place.path
        told = [f"fetch {len(self.chain)} link(s), {self.chain.stored_size} bytes, into {target}"]
        told += [f"prepare {'base' if link is self.chain.base else 'with link'} {link.id}" for link in self.chain]
        if self.place.server_running:
            told.append(f"stop the server that runs on {target}")
        if self.place.entries:
            told.append(f"swap the new data for the {self.place.size} bytes in {target}, which are kept aside")
        else:
            told.append(f"move the new data into {target}")
        told.append(f"give it to user {self.os_user}")
        if self.start:
            told.append("start the server, with events and replication off, and ask it")
        return told


def make_plan(host: Host, request: RestoreRequest) -> Plan:
    """Think a restore through; raises only where not even a plan can be made (no such backup, broken chain)."""
    chain = host.catalog.chain(check_known(_find(host, request.source), request.checksum), locked_too=True)
    engine = engine_named(chain.tip.manifest.engine)
    tool = tool_version_of(engine)
    place = look(_target(host, request))
    plan = Plan(
        chain=chain,
        engine=engine,
        tool_version=tool,
        place=place,
        work_dir=host.restore.work_dir,
        start=place.server_running if request.start is None else request.start,
        os_user=host.database.os_user,
        against=(),
    )
    whole, damaged = _objects(host, chain)
    against = [
        *_against_locks(chain),
        *damaged,
        *_against_forgery(host, plan, request),
        *_against_tool(plan),
        *_against_target(plan, request),
        *_against_space(plan),
        *_against_owner(plan),
    ]
    return replace(plan, against=(*against, *_against_start(host, plan)), whole=whole)


def space_needed(chain: Chain, work_dir: Path | None) -> int:
    """Bytes that a restore needs on the target's filesystem, beside what is there."""
    return _base_space(chain) + (0 if work_dir else _links_space(chain))


def _base_space(chain: Chain) -> int:
    return chain.raw_size + SLACK


def _links_space(chain: Chain) -> int:
    return chain.raw_size - chain.base.manifest.raw_size


def look_again(plan: Plan, request: RestoreRequest) -> None:
    """Raise what speaks against the target now: much may have happened there while the data came."""
    for reason in _against_target(replace(plan, place=look(plan.place.path)), request):
        raise reason


def _find(host: Host, source: str) -> Backup:
    if "://" in source:
        return host.catalog.at(source)
    return host.catalog.get(backup_id(source))


def target_of(host: Host, request: RestoreRequest) -> Path | None:
    """Where a restore goes, if that is known."""
    return request.datadir or host.database.datadir


def _target(host: Host, request: RestoreRequest) -> Path:
    target = target_of(host, request)
    if target is None:
        raise ConfigError("no datadir to restore into", hint="give --datadir, or set [database] datadir")
    return target


def _against_locks(chain: Chain) -> list[GuestagentError]:
    """Keys that are not here; what is said of such a backup is what its manifest shows to everybody."""
    return [locked(link) for link in chain if link.locked_by]


def _objects(host: Host, chain: Chain) -> tuple[bool | None, list[GuestagentError]]:
    """Whether all objects are there, and what is wrong with those of each link: a listing a link, and no byte of them.

    Credentials may be such as read and do not list: then each object is asked for when its turn comes.
    """
    damaged: list[GuestagentError] = []
    for link in chain:
        try:
            host.catalog.check_whole(link)
        except Corrupt as error:
            damaged.append(error)
        except StorageDenied as error:
            LOG.info("whether the objects of %s are all there is not known: %s", link.id, error)
            return (False if damaged else None), damaged
    return not damaged, damaged


def _against_forgery(host: Host, plan: Plan, request: RestoreRequest) -> list[GuestagentError]:
    """Where backups are encrypted, a manifest that is not may be anybody's who can write to the store.

    The newest link decides: it proves those below it by their checksums.
    """
    tip = plan.chain.tip
    if tip.manifest.encryption is not None or request.accept_unencrypted == tip.id or request.checksum:
        return []
    if not host.catalog.encrypts(tip):
        return []
    return [
        Refused(
            f"backup {tip.id} is not encrypted, and others of {tip.manifest.instance_id} are",
            hint=f"if you know where it comes from, give --accept-unencrypted {tip.id}",
        )
    ]


def _against_tool(plan: Plan) -> list[GuestagentError]:
    """A stated rule: the tool is of the backup's series, and no older than the newest that made a link."""
    tip = Version.parse(plan.chain.tip.manifest.server_version)
    if plan.tool_version.series != tip.series:
        return [
            Refused(
                f"{plan.engine.tool} {plan.tool_version} cannot prepare a backup of server {tip}",
                hint=f"install {plan.engine.tool} {tip.series}",
            )
        ]
    newest = max(Version.parse(link.manifest.tool_version) for link in plan.chain)
    if plan.tool_version < newest:
        return [
            Refused(
                f"{plan.engine.tool} {plan.tool_version} is older than the {newest} that made this backup",
                hint=f"install {plan.engine.tool} {newest} or newer",
            )
        ]
    return []


def _against_target(plan: Plan, request: RestoreRequest) -> list[GuestagentError]:
    where = plan.place.path
    if plan.place.entries and not plan.place.looks_like_datadir:
        return [Refused(f"{where} holds something that is no datadir", hint="name an empty directory")]
    if request.replace or (request.pristine and plan.place.pristine):
        return []
    if plan.place.server_running:
        return [Refused(f"a server runs on {where}", hint="stop it, or give --replace to have it stopped")]
    if plan.place.entries:
        return [Refused(f"{where} is not empty", hint="give --replace: what is there is kept until the new answers")]
    return []


def _against_space(plan: Plan) -> list[GuestagentError]:
    against: list[GuestagentError] = []
    free = plan.place.free + plan.place.leftover
    if free < plan.needed_space:
        against.append(_too_small(plan.place.path, free, plan.needed_space))
    return against + (_against_work_dir(plan.work_dir, plan.links_space) if plan.work_dir else [])


def _against_work_dir(work_dir: Path, needed: int) -> list[GuestagentError]:
    if not os.access(work_dir, os.W_OK | os.X_OK) or not work_dir.is_dir():
        return [ConfigError(f"cannot write to work_dir {work_dir}", hint="make it, or set [restore] work_dir")]
    state = os.statvfs(work_dir)
    free = state.f_bavail * state.f_frsize
    return [_too_small(work_dir, free, needed)] if free < needed else []


def _too_small(where: Path, free: int, needed: int) -> Refused:
    return Refused(f"{where} has {free} bytes free and the restore needs {needed}", hint="free space, or use another")


def _against_owner(plan: Plan) -> list[GuestagentError]:
    try:
        user = pwd.getpwnam(plan.os_user)
    except KeyError:
        return [ConfigError(f"no user {plan.os_user} here", hint="install the server, or set [database] os_user")]
    if os.geteuid() not in (0, user.pw_uid):
        return [Refused(f"the data must belong to {plan.os_user}", hint=f"run as root or as {plan.os_user}")]
    return []


def _against_start(host: Host, plan: Plan) -> list[GuestagentError]:
    """A server that answers although none runs on the target is another one: its answer would prove nothing."""
    if not plan.start or plan.place.server_running:
        return []
    try:
        answers(host.database.connection, timeout=0)
    except DatabaseError:
        return []
    return [
        Refused(
            f"a server answers already, and it does not run on {plan.place.path}",
            hint="stop it, or give --no-start and start the restored one yourself",
        )
    ]
