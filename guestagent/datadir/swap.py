"""The exchange of a datadir's data for others, such that a crash leaves the old or the new, never a mix.

Nothing is copied: every entry of the datadir is renamed into our directory, and every entry of
the incoming directory into the datadir.  Meanwhile no server can start, because the two files that
one opens first are replaced by blockers before anything else moves::

    phase   what moves                                          after a crash
    back    old aria_log_control, ibdata1 -> kept; blockers in  undone: the old data stay
    out     every other old entry -> kept                       goes on
    in      every other new entry -> datadir                    goes on
    last    new ibdata1, then new aria_log_control -> datadir   goes on

The last rename over a blocker is the one moment in which the new data become real.
Each phase is in the journal, durably, before its first rename.  The journals of all phases, the
one that undoes among them, are written before anything moves: a disk that fills up meanwhile
stops neither the swap nor its undoing.  What turns up in the datadir meanwhile and is in neither
list (a refused server leaves files) is put aside.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from guestagent.datadir import blocker, durable, journal, layout, place
from guestagent.datadir.blocker import PIVOTS
from guestagent.datadir.durable import explained, shown
from guestagent.datadir.journal import Journal, Phase
from guestagent.datadir.staging import half_swapped
from guestagent.errors import Corrupt, GuestagentError, NotFound, Refused, UsageError


@dataclass(frozen=True)
class _Exchange:
    """A datadir and the journal of what is done in it."""

    datadir: Path
    journal: Journal

    @property
    def incoming(self) -> Path:
        return layout.ours(self.datadir) / self.journal.incoming

    @property
    def outgoing(self) -> Path:
        return layout.ours(self.datadir) / self.journal.outgoing

    @property
    def strays(self) -> Path:
        return self.outgoing.with_name(self.outgoing.name + layout.STRAYS)

    def at(self, phase: Phase) -> _Exchange:
        """Note durably that ``phase`` begins."""
        later = replace(self, journal=self.journal.at(phase))
        journal.write(self.datadir, later.journal)
        return later


def swap(datadir: Path, *, incoming: Path, keep_as: str) -> Path | None:
    """Put the entries of ``incoming`` (a staging's base) in the place of those of ``datadir``.

    ``incoming`` must be durable, and belong to whom the datadir shall belong to.  Returns the
    directory that the old entries are kept in, named after the label ``keep_as``, or None if there
    were none; the staging is gone then.  A failure before anything new is in is undone; after any
    other, and after a crash, ``recover`` goes on.
    """
    with explained(f"swap the data in {shown(datadir)}"):
        outgoing = layout.unused(datadir, layout.KEPT, keep_as)
        done = _exchange(datadir, incoming=incoming, outgoing=outgoing)
        layout.tidy(datadir)
        return done.outgoing if done.outgoing.is_dir() else None


def put_back(datadir: Path, kept: Path) -> None:
    """Put what a swap has kept back in its place, and delete what the swap had brought."""
    _check_kept(datadir, kept)
    with explained(f"put {shown(kept)} back"):
        outgoing = layout.unused(datadir, layout.TRASH, kept.name.removeprefix(layout.KEPT))
        _exchange(datadir, incoming=kept, outgoing=outgoing)
        layout.sweep(datadir)


def recover(datadir: Path) -> str | None:
    """End whatever was interrupted in ``datadir``, and say in a line what that was; None: nothing."""
    with explained(f"recover the swap in {shown(datadir)}"):
        found = journal.read(datadir)
        if found is None:
            swept = layout.sweep(datadir)
            return f"deleted what was left to delete in {shown(datadir)}" if swept else None
        return _end(_Exchange(datadir, found))


def kept(datadir: Path) -> list[Path]:
    """The directories of old data that swaps have kept, ordered by name."""
    with explained(f"look for kept data in {shown(datadir)}"):
        return [path for path in layout.named(datadir, layout.KEPT) if not path.name.endswith(layout.STRAYS)]


def forget(datadir: Path, kept: Path) -> None:
    """Delete what a swap has kept; begun once, it is ended by ``recover`` after a crash."""
    _check_kept(datadir, kept)
    _check_settled(datadir)
    with explained(f"delete {shown(kept)}"):
        label = kept.name.removeprefix(layout.KEPT)
        kept.rename(kept.with_name(layout.unused(datadir, layout.TRASH, label)))
        durable.sync_directory(layout.ours(datadir))
        layout.sweep(datadir)


def _check_settled(datadir: Path) -> None:
    if half_swapped(datadir):
        raise Refused(f"another swap in {shown(datadir)} is half done", hint="finish it first, by its recovery")


def _check_kept(datadir: Path, path: Path) -> None:
    if path not in kept(datadir):
        raise NotFound(f"no kept data at {shown(path)}")


def _exchange(datadir: Path, *, incoming: Path, outgoing: str) -> _Exchange:
    exchange = _planned(datadir, incoming, outgoing)
    journal.begin(datadir, exchange.journal)
    try:
        exchange = _block(exchange)
        exchange = _move_out(exchange)
        _make_way(exchange)
    except (OSError, GuestagentError):
        _undo(exchange.at(Phase.BACK))
        raise
    return _finish(_move_in(exchange))


def _planned(datadir: Path, incoming: Path, outgoing: str) -> _Exchange:
    """Look at everything that must not fail later."""
    _check_settled(datadir)
    if incoming not in (layout.ours(datadir) / layout.BASE, *kept(datadir)):
        raise UsageError(f"{shown(incoming)} is neither the staging of {shown(datadir)} nor kept there")
    if place.server_running(datadir):
        raise Refused(f"a server runs on {shown(datadir)}", hint="stop it first")
    for pivot in (directory / name for directory in (datadir, incoming) for name in PIVOTS):
        if pivot.is_dir() and not pivot.is_symlink():
            raise Refused(f"{shown(pivot)} is a directory", hint="that is no datadir: look at it by hand")
    return _Exchange(
        datadir,
        Journal(
            phase=Phase.BACK,
            incoming=str(incoming.relative_to(layout.ours(datadir))),
            outgoing=outgoing,
            old=layout.entries(datadir),
            new=layout.entries(incoming),
        ),
    )


def _block(exchange: _Exchange) -> _Exchange:
    """Keep the old pivots and put blockers in their place; from then on no server can start."""
    os.mkdir(exchange.outgoing, layout.PRIVATE)
    durable.give(exchange.outgoing, exchange.datadir)
    for name in exchange.journal.old.intersection(PIVOTS):
        os.link(exchange.datadir / name, exchange.outgoing / name, follow_symlinks=False)
    durable.sync_directory(layout.ours(exchange.datadir))
    durable.sync_directory(exchange.outgoing)
    for name in PIVOTS:
        blocker.put(exchange.datadir, name)
    durable.sync_directory(exchange.datadir)
    if place.server_running(exchange.outgoing):
        raise Refused(f"a server has started on {shown(exchange.datadir)} just now", hint="stop it first")
    return exchange.at(Phase.OUT)


def _undo(exchange: _Exchange) -> None:
    """Put the old data back in their place; nothing new is in, and the journal says BACK."""
    moved = layout.entries(exchange.outgoing) if exchange.outgoing.is_dir() else frozenset()
    for name in sorted(moved.difference(PIVOTS)):
        durable.remove_tree(exchange.datadir / name)
        os.rename(exchange.outgoing / name, exchange.datadir / name)
    _put_strays_back(exchange)
    for name in reversed(PIVOTS):
        _unblock(exchange, name)
    durable.remove_tree(exchange.outgoing)
    journal.remove(exchange.datadir)


def _unblock(exchange: _Exchange, name: str) -> None:
    old, blocked = exchange.outgoing / name, exchange.datadir / name
    if os.path.lexists(old):
        os.rename(old, blocked)  # does nothing while both are names of one file, as they are until the blocker is in
    elif blocker.is_one(blocked):
        os.unlink(blocked)
    durable.sync_directory(exchange.datadir)


def _put_strays_back(exchange: _Exchange) -> None:
    """What was put aside goes back, unless an old entry has its name: then a refused server has made it."""
    for spot in exchange.strays.iterdir() if exchange.strays.is_dir() else ():
        for name in os.listdir(spot):
            if not os.path.lexists(exchange.datadir / name):
                os.rename(spot / name, exchange.datadir / name)
    durable.remove_tree(exchange.strays)


def _end(exchange: _Exchange) -> str:
    where = shown(exchange.datadir)
    if exchange.journal.phase is Phase.BACK:
        _undo(exchange)
        return f"undid a swap in {where} that was interrupted as it began: the data are those from before"
    _go_on(exchange)
    layout.sweep(exchange.datadir)
    if exchange.journal.outgoing.startswith(layout.TRASH):
        return f"finished putting the old data in {where} back in place"
    kept = f", the old are kept in {shown(exchange.outgoing)}" if exchange.outgoing.is_dir() else ""
    return f"finished a swap in {where}: the new data are in place{kept}"


def _go_on(exchange: _Exchange) -> _Exchange:
    if exchange.journal.phase is Phase.OUT:
        exchange = _move_out(exchange)
    if exchange.journal.phase is Phase.IN:
        _make_way(exchange)
        exchange = _move_in(exchange)
    return _finish(exchange)


def _finish(exchange: _Exchange) -> _Exchange:
    _let_servers_start(exchange)
    durable.remove_tree(layout.ours(exchange.datadir) / Path(exchange.journal.incoming).parts[0])
    if not exchange.journal.old:
        durable.remove_tree(exchange.outgoing)
    journal.remove(exchange.datadir)
    return exchange


def _move_out(exchange: _Exchange) -> _Exchange:
    for name in sorted(layout.entries(exchange.datadir).difference(PIVOTS)):
        if name in exchange.journal.old and not os.path.lexists(exchange.outgoing / name):
            os.rename(exchange.datadir / name, exchange.outgoing / name)
        else:
            _put_aside(exchange, name)
    durable.sync_directory(exchange.outgoing)
    durable.sync_directory(exchange.datadir)
    return exchange.at(Phase.IN)


def _make_way(exchange: _Exchange) -> None:
    arrived = exchange.journal.new - layout.entries(exchange.incoming)
    for name in sorted(layout.entries(exchange.datadir) - arrived.union(PIVOTS)):
        _put_aside(exchange, name)


def _move_in(exchange: _Exchange) -> _Exchange:
    waiting = layout.entries(exchange.incoming)
    arrived = exchange.journal.new - waiting
    for name in sorted(waiting.difference(PIVOTS)):
        os.rename(exchange.incoming / name, exchange.datadir / name)
    for name in sorted(arrived.difference(PIVOTS)):
        _check_not_lost(exchange, name)
    durable.give(exchange.datadir.resolve(), exchange.incoming)
    durable.give(layout.ours(exchange.datadir), exchange.incoming)
    durable.sync_directory(exchange.datadir)
    durable.sync_directory(exchange.incoming)
    return exchange.at(Phase.LAST)


def _let_servers_start(exchange: _Exchange) -> None:
    for name in reversed(PIVOTS):
        if os.path.lexists(exchange.incoming / name):
            os.rename(exchange.incoming / name, exchange.datadir / name)
        elif name in exchange.journal.new:
            _check_not_lost(exchange, name)
        elif blocker.is_one(exchange.datadir / name):
            os.unlink(exchange.datadir / name)
        durable.sync_directory(exchange.datadir)


def _check_not_lost(exchange: _Exchange, name: str) -> None:
    spot = exchange.datadir / name
    if not os.path.lexists(spot) or blocker.is_one(spot):
        raise Corrupt(
            f"{shown(spot)} was removed while a swap was half done",
            hint=f"the old data are in {shown(exchange.outgoing)}; restore into another directory",
        )


def _put_aside(exchange: _Exchange, name: str) -> None:
    exchange.strays.mkdir(layout.PRIVATE, exist_ok=True)
    spot = exchange.strays / str(len(os.listdir(exchange.strays)))
    spot.mkdir(layout.PRIVATE)
    os.rename(exchange.datadir / name, spot / name)
