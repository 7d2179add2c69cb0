"""Two hosts that wrap one backup's key anew at once: however their steps mix, some key of theirs opens the backup."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import pytest

from guestagent.catalog import wrapping
from guestagent.catalog.reading import Reader
from guestagent.errors import Busy, Corrupt, GuestagentError, ObjectExists, ObjectMissing
from guestagent.keys import KeyRing, KeySource
from guestagent.manifest import Backup
from guestagent.storage import open_storage
from guestagent.wrapped import WrappedKey
from tests.fakes.backups import GUEST, manifest
from tests.fakes.bench import PATIENCE
from tests.fakes.stores import Through, half

DATA_KEY = b"the data key of the backup"
STEPS = 14
"""More than a rotation makes."""
NONCES = itertools.count()


@dataclass(frozen=True)
class Toy:
    """A key that binds and hides nothing, and opens nothing but what it has wrapped, whole."""

    id: str

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """Never twice the same bytes."""
        return f"{self.id} {context['backup_id']} {next(NONCES)} ".encode() + data_key

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        prefix = f"{self.id} {context['backup_id']} ".encode()
        if not wrapped.startswith(prefix):
            raise Corrupt("wrapped by another key")
        return wrapped.removeprefix(prefix).partition(b" ")[2]


@dataclass(frozen=True)
class Ring:
    """Some keys, and nothing else of a ring."""

    keys: tuple[Toy, ...]

    def find(self, key_id: str) -> KeySource | None:
        return next((key for key in self.keys if key.id == key_id), None)


OLD, FIRST, SECOND = Toy("file:old"), Toy("file:first"), Toy("file:second")
MADE = manifest(1)
LOCATION = f"file:///nowhere/{GUEST}/{MADE.id}"
BACKUP = Backup(MADE, LOCATION, "0" * 64, DATA_KEY)
KEY, SPARE = f"{GUEST}/{MADE.id}/key.json", f"{GUEST}/{MADE.id}/key.next.json"


BOUND = {"backup_id": MADE.id}


def wrapped(key: Toy) -> bytes:
    return WrappedKey(key.id, key.wrap(DATA_KEY, BOUND)).to_bytes()


@dataclass
class Turns:
    """Who makes how many steps before the other one's turn comes; -1: all that are left."""

    order: list[tuple[str, int]]
    ended: set[str] = field(default_factory=set)
    news: threading.Condition = field(default_factory=threading.Condition)

    def step(self, me: str) -> None:
        """Wait for my turn; what I did before is done by the time I ask."""
        with self.news:
            while self.order[0][0] != me or self.order[0][1] == 0:
                if self.order[0][0] == me:
                    self._pass_on()
                else:
                    assert self.news.wait(PATIENCE)
            self.order[0] = (me, self.order[0][1] - 1)

    def end(self, me: str) -> None:
        with self.news:
            self.ended.add(me)
            while self.order and self.order[0][0] in self.ended:
                self._pass_on()

    def _pass_on(self) -> None:
        del self.order[0]
        while self.order and self.order[0][0] in self.ended:
            del self.order[0]
        self.news.notify_all()


@dataclass
class Shelf:
    """What lies in the store; of the puts with the numbers ``cut`` it keeps but half."""

    objects: dict[str, bytes]
    cut: tuple[int, ...] = ()
    puts: int = 0
    opened: list[bool] = field(default_factory=list)

    def keep(self, key: str, body: bytes) -> None:
        self.objects[key] = half(body) if self.puts in self.cut else body
        self.puts += 1

    def opens(self) -> bool:
        """Whether a key of one of the two opens the backup."""
        return any(self.opened_by(key) for key in (KEY, SPARE))

    def opened_by(self, key: str) -> Toy | None:
        """The key that opens what lies there."""
        with suppress(KeyError, Corrupt):
            found = WrappedKey.from_bytes(self.objects[key])
            toy = next(one for one in (OLD, FIRST, SECOND) if one.id == found.key_id)
            return toy if toy.unwrap(found.wrapped, BOUND) == DATA_KEY else None
        return None


class Seen(Through):
    """The shelf as one of the two sees it, each step in its turn."""

    def __init__(self, shelf: Shelf, turns: Turns, me: str) -> None:
        super().__init__(open_storage("file:///nowhere"))
        self._shelf, self._turns, self._me = shelf, turns, me

    def _step(self, act: Callable[[], None]) -> None:
        self._turns.step(self._me)
        act()
        self._shelf.opened.append(self._shelf.opens())

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        self._step(lambda: self._shelf.keep(key, bytes(body)))

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        self._turns.step(self._me)
        if key in self._shelf.objects:
            raise ObjectExists("taken")
        self._shelf.keep(key, bytes(body))

    def get(self, key: str, *, limit: int) -> bytes:
        self._turns.step(self._me)
        if key not in self._shelf.objects:
            raise ObjectMissing("no such object")
        return self._shelf.objects[key]

    def delete(self, keys: Iterable[str]) -> None:
        def act() -> None:
            for key in keys:
                self._shelf.objects.pop(key, None)

        self._step(act)


def race(shelf: Shelf, order: list[tuple[str, int]], keys: Mapping[str, Toy]) -> dict[str, GuestagentError | None]:
    """Both rotate, in that order of steps; gives how each ended."""
    turns, ends = Turns(order), dict[str, GuestagentError | None]()

    def rotate(me: str, new: Toy) -> None:
        store = Seen(shelf, turns, me)
        reader = Reader(lambda _: store, cast(KeyRing, Ring((new, OLD))))
        try:
            wrapping.rewrap(store, reader, BACKUP, new)
            ends[me] = None
        except GuestagentError as error:
            ends[me] = error
        finally:
            turns.end(me)

    threads = [threading.Thread(target=rotate, args=item, daemon=True) for item in keys.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(ends) == len(keys), "one of them hangs, or died of a bug"
    return ends


def orders() -> Iterator[list[tuple[str, int]]]:
    """The one makes some steps, the other some, and then each the rest."""
    for first in range(STEPS):
        for second in range(1, STEPS):
            for last in ("a", "b"):
                yield [("a", first), ("b", second), ("ab".replace(last, ""), -1), (last, -1)]


LEFT = {
    "nothing": {KEY: wrapped(OLD)},
    "a spare": {KEY: wrapped(OLD), SPARE: wrapped(OLD)},
    "a spare alone": {KEY: b"{", SPARE: wrapped(OLD)},
    "a bad spare": {KEY: wrapped(OLD), SPARE: b"{"},
}
"""What an earlier rotation has left."""


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("second", [FIRST, SECOND], ids=["the same key", "another key"])
def test_some_key_opens_the_backup_at_any_time_and_who_is_done_has_its_key(left: dict[str, bytes], second: Toy) -> None:
    keys = {"a": FIRST, "b": second}
    for order in orders():
        shelf, told = Shelf(dict(left)), list(order)
        ends = race(shelf, order, keys)
        assert all(shelf.opened), told
        assert all(end is None or isinstance(end, Busy) for end in ends.values()), (told, ends)
        assert shelf.opened_by(KEY) in [keys[me] for me, end in ends.items() if end is None], told


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_what_the_store_does_not_keep_meanwhile_costs_no_backup(left: dict[str, bytes]) -> None:
    """Two puts in a row of which it keeps but half: whoever finds that out sees to it that something opens."""
    for order in orders():
        for number in range(6):
            shelf, told = Shelf(dict(left), cut=(number, number + 1)), list(order)
            ends = race(shelf, list(order), {"a": FIRST, "b": SECOND})
            assert shelf.opens(), (told, number, ends)
            assert all(end is None or isinstance(end, Busy | Corrupt) for end in ends.values()), (told, ends)


def test_of_two_that_begin_at_once_one_leaves_the_backup_to_the_other() -> None:
    shelf = Shelf({KEY: wrapped(OLD)})
    ends = race(shelf, [("a", 2), ("b", 3), ("a", -1), ("b", -1)], {"a": FIRST, "b": FIRST})
    assert ends["b"] is None
    assert str(ends["a"]) == (
        f"another rotation of the key of backup {MADE.id} has just begun; let it end, see by `guestagent key list` "
        "which keys are in use, and rotate again"
    )
    assert (shelf.opened_by(KEY), len(shelf.objects)) == (FIRST, 1)


def test_who_finds_the_key_of_another_in_place_of_its_own_says_so() -> None:
    """The one has looked twice and put its key.json, and not yet looked at it again."""
    shelf = Shelf({KEY: wrapped(OLD), SPARE: wrapped(OLD)})
    ends = race(shelf, [("a", 3), ("b", -1), ("a", -1)], {"a": FIRST, "b": SECOND})
    assert ends["b"] is None
    assert f"has just wrapped it with key {SECOND.id}; " in str(ends["a"])
    assert (shelf.opened_by(KEY), len(shelf.objects)) == (SECOND, 1)
