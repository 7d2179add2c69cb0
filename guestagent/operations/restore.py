"""The restore story: plan, fetch and prepare in staging, swap, start and ask.

Nothing that exists is touched before its replacement is prepared, and what was
there is kept aside until the restored server has answered.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guestagent.datadir import incarnation, swap
from guestagent.datadir.durable import explained, remove_tree
from guestagent.datadir.place import make_durable, own
from guestagent.datadir.staging import Staging, clear, half_swapped, open_staging
from guestagent.engines import Flaw, PrepareRequest
from guestagent.engines.argv_for import OPTION_FILE
from guestagent.engines.optionfile import check_backed_up
from guestagent.errors import Cancelled, Corrupt, DatabaseError, GuestagentError, ToolError, one_line
from guestagent.manifest import Backup
from guestagent.model import BackupId, InstanceId
from guestagent.operations import memory, moved, renamed, service
from guestagent.operations.backup import check_confirmed, read_texts, small_text
from guestagent.operations.host import Host, team
from guestagent.operations.plan import Plan, RestoreRequest, look_again, make_plan, target_of
from guestagent.operations.verify import incoming_of
from guestagent.progress import Watch
from guestagent.streams.extract import Extraction
from guestagent.streams.pace import Gate
from guestagent.streams.process import Child
from guestagent.streams.segments import Arrivals

LOG = logging.getLogger(__name__)

LEAST_MEMORY = 128 << 20
MOST_MEMORY = 8 << 30


@dataclass(frozen=True)
class Restored:
    """What a restore has done; ``kept`` is where the old data lies, if it was not yet forgotten."""

    backup: Backup
    links: tuple[BackupId, ...]
    raw_size: int
    datadir: Path
    kept: Path | None
    server: str | None

    def properties(self) -> dict[str, Any]:
        """What users see of it."""
        return {
            "backup_id": self.backup.id,
            "name": one_line(self.backup.manifest.name),
            "links": len(self.links),
            "raw_size": self.raw_size,
            "datadir": str(self.datadir),
            "started": self.server is not None,
            "server_version": self.server,
            "old_data": str(self.kept) if self.kept else None,
        }


def restore(host: Host, request: RestoreRequest, watch: Watch) -> Restored:
    """Bring a backup back; raises, and leaves the target as it was, if that cannot be done exactly."""
    watch.phase("plan")
    recover(host, request)
    plan = make_plan(host, request)
    plan.check()
    with _staged(host, plan) as (staging, links):
        _build(host, plan, staging, links, watch)
        _seal(host, plan, staging.base, watch)
        look_again(plan, request)
        with _server_stopped(host, plan, watch):
            kept = swap.swap(plan.place.path, incoming=staging.base, keep_as=plan.chain.tip.id)
        return _hand_over(host, plan, kept, watch)


def recover(host: Host, request: RestoreRequest) -> None:
    """Finish a swap that a dead restore had begun; from its first move on, the new data is the data."""
    target = target_of(host, request)
    if target is not None and os.path.isdir(target):
        done = swap.recover(target)
        if done:
            LOG.warning("an earlier restore had died in its swap: %s", done)


def sweep_restores(host: Host, target: Path) -> None:
    """Remove what a dead restore into ``target`` had fetched, unless its swap is half done.

    Only under the host lock: what lies there then belongs to nobody who lives.
    """
    if clear(target):
        LOG.warning("removed what a dead restore had fetched into %s", target)
    if host.restore.work_dir is not None and host.instance is not None:
        shutil.rmtree(_links_room(host.restore.work_dir, host.instance), ignore_errors=True)


@contextmanager
def _staged(host: Host, plan: Plan) -> Iterator[tuple[Staging, Sequence[Path]]]:
    """Fresh directories for the base and for each incremental; gone afterwards, however it ends."""
    staging = open_staging(plan.place.path)
    try:
        with _link_directories(plan, staging, owner=_instance(host, plan)) as links:
            yield staging, links
    finally:
        service.undo(staging.discard, "cannot clear the staging")


@contextmanager
def _link_directories(plan: Plan, staging: Staging, *, owner: InstanceId) -> Iterator[Sequence[Path]]:
    """One empty directory for each incremental, never with what a dead restore left in it."""
    numbers = range(1, len(plan.chain))
    if plan.work_dir is None:
        yield [staging.link(number) for number in numbers]
        return
    above = _links_room(plan.work_dir, owner)
    links = [above / f"link-{number}" for number in numbers]
    try:
        with explained(f"make room in {plan.work_dir}"):
            remove_tree(above)
            for link in links:
                link.mkdir(mode=0o700, parents=True)
        yield links
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _links_room(work_dir: Path, owner: InstanceId) -> Path:
    return work_dir / f"guestagent-{owner}"


def _instance(host: Host, plan: Plan) -> InstanceId:
    """Whose data it will be."""
    return host.instance or plan.chain.tip.manifest.instance_id


def _build(host: Host, plan: Plan, staging: Staging, links: Sequence[Path], watch: Watch) -> None:
    """Fetch all links at once, base first where they compete, and prepare each as soon as it is whole."""
    directories = [staging.base, *links]
    gate = Gate(host.stream.rate_limit, watch)
    with ExitStack() as stack:
        incoming = [
            incoming_of(
                host, link, stack.enter_context(Extraction(directory, dialect=link.manifest.stream.format)), gate
            )
            for link, directory in zip(plan.chain, directories, strict=True)
        ]
        watch.phase("fetch", total=plan.chain.stored_size, links=len(plan.chain))
        arrivals = Arrivals(incoming, team=team(host, host.restore.download_workers), watch=watch)
        stack.enter_context(arrivals)
        stack.enter_context(gate)
        for number, (link, directory) in enumerate(zip(plan.chain, directories, strict=True)):
            arrivals.wait_for(number)
            watch.phase("prepare", link=number + 1, links=len(plan.chain))
            _prepare(host, plan, link, base=staging.base, directory=directory, watch=watch)


def _prepare(host: Host, plan: Plan, link: Backup, *, base: Path, directory: Path, watch: Watch) -> None:
    """Prepare the base, or apply one link to it and drop what is left of the link."""
    _check_options(link, {base, directory})
    request = PrepareRequest(
        base=base,
        incremental=None if directory == base else directory,
        last=link is plan.chain.tip,
        use_memory=host.restore.use_memory or _memory(plan.chain.raw_size),
    )
    if request.incremental and Flaw.RENAMED in plan.engine.flaws:
        renamed.drop_old_names(base, directory)
    with Child(
        plan.engine.prepare_argv(request), on_line=lambda _: watch.alive(), niceness=host.database.niceness
    ) as child:
        child.finish(watch)
        check_confirmed(plan.engine.confirmed(child.tail), child)
    reached = plan.engine.prepared_to(read_texts(base))
    if reached != link.manifest.lsn.end:
        raise ToolError(f"{plan.engine.tool} prepared {link.id} to LSN {reached}, not {link.manifest.lsn.end}")
    if directory != base:
        with explained(f"clear {directory}"):
            remove_tree(directory)


def _check_options(link: Backup, directories: Iterable[Path]) -> None:
    """The tool is about to obey the options that came with the backup."""
    for directory in directories:
        if (found := directory / OPTION_FILE).is_file():
            try:
                check_backed_up(small_text(found), directory)
            except Corrupt as error:
                raise Corrupt(f"{link.location}: {error.what}", hint=error.hint) from error


def _seal(host: Host, plan: Plan, base: Path, watch: Watch) -> None:
    """Make the prepared directory a datadir: its own incarnation, its owner, and all of it on disk."""
    watch.phase("seal")
    watch.check()
    history = [link.id for link in plan.chain]
    incarnation.write(base, incarnation.fresh(_instance(host, plan), chain=history))
    _drop_links(base)
    if Flaw.MOVED in plan.engine.flaws:
        moved.admit(base)
    own(base, user=plan.os_user)
    make_durable(base)
    watch.check()


def _drop_links(base: Path) -> None:
    """Tables with a DATA DIRECTORY have come into the datadir; their link files would lead to where they were."""
    with explained(f"drop links in {base}"):
        for link in base.glob("*/*.isl"):
            link.unlink()


@contextmanager
def _server_stopped(host: Host, plan: Plan, watch: Watch) -> Iterator[None]:
    """No server on the target while the data changes places; the old one runs on if that does not come about."""
    if not plan.place.server_running:
        yield
        return
    watch.phase("stop")
    watch.check()
    try:
        service.stop(host.database, plan.place.path, watch)
        watch.check()
        yield
    except BaseException:
        _start_again(host, plan)
        raise


def _start_again(host: Host, plan: Plan) -> None:
    """The old server, unless its data are neither all there nor all gone: then the next restore must end the swap."""
    if half_swapped(plan.place.path):
        LOG.error("the swap in %s is half done and its server stays down; restore again to end it", plan.place.path)
        return
    service.undo(lambda: service.start(host.database, Watch()), "cannot start the old server again")


def _hand_over(host: Host, plan: Plan, kept: Path | None, watch: Watch) -> Restored:
    """Start and ask the server if that is wanted; only its answer lets the old data go."""
    version = None
    if plan.start:
        watch.phase("start")
        version = _start_or_put_back(host, plan, kept, watch)
        for old in swap.kept(plan.place.path):
            service.undo(partial(swap.forget, plan.place.path, old), f"cannot delete {old}")
    return Restored(
        backup=plan.chain.tip,
        links=tuple(link.id for link in plan.chain),
        raw_size=plan.chain.raw_size,
        datadir=plan.place.path,
        kept=kept if kept and kept.is_dir() else None,
        server=version,
    )


def _start_or_put_back(host: Host, plan: Plan, kept: Path | None, watch: Watch) -> str:
    try:
        return service.start_quietly(host.database, plan.place.path, plan.chain.tip.manifest.datastore, watch)
    except Cancelled as error:
        raise Cancelled(error.what, hint=_put_back(host, plan, kept)) from error
    except GuestagentError as error:
        hint = _put_back(host, plan, kept) if kept else "see the server's log; the restored data stays where it is"
        raise DatabaseError(f"the restored server does not answer: {error.what}", hint=hint) from error


def _put_back(host: Host, plan: Plan, kept: Path | None) -> str:
    """The old data to its place, and its server up again if one ran there, not to be cancelled; says how it went."""
    calm, target = Watch(), plan.place.path
    service.undo(lambda: service.stop(host.database, target, calm), "cannot stop the restored server")
    if kept is None:
        return f"the restored data stays in {target}"
    if not service.undo(lambda: swap.put_back(target, kept), "cannot put the old data back"):
        return f"the old data could not be put back and is in {kept}"
    if plan.place.server_running:
        service.undo(lambda: service.start(host.database, calm), "cannot start the old server again")
    return "the old data is back in its place"


def _memory(data: int) -> int:
    """Bytes for prepare's buffer pool: half of what is to be had here, and no more than ``data`` can fill."""
    return max(LEAST_MEMORY, min(memory.available() // 2, MOST_MEMORY, data))
