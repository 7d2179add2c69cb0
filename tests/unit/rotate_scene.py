"""What the tests of rotations share: a host with some keys, a small encrypted backup, a store at which one dies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from guestagent.catalog import Catalog
from guestagent.keys import KeySettings, open_keys
from guestagent.manifest import Backup
from guestagent.model import InstanceId
from guestagent.operations.host import Host
from guestagent.storage import Storage, open_storage
from tests.fakes.backups import manifest
from tests.fakes.bench import Bench
from tests.fakes.stores import Through, half

On = Callable[..., Host]


class Died(BaseException):
    """The process has come to its end here."""


class Dies(Through):
    """Ends at one of its changes: before it, after it, or after a put of which the store keeps but half."""

    def __init__(self, inner: Storage, number: int, when: str) -> None:
        super().__init__(inner)
        self._left, self._when = number, when

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        self._change(lambda: super(Dies, self).put(key, half(bytes(body)) if self._cuts() else body))

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        self._change(lambda: super(Dies, self).put_new(key, half(bytes(body)) if self._cuts() else body))

    def delete(self, keys: Iterable[str]) -> None:
        self._change(lambda: super(Dies, self).delete(keys))

    def _cuts(self) -> bool:
        return self._left == 0 and self._when == "half"

    def _change(self, change: Callable[[], None]) -> None:
        self._left -= 1
        if self._left == 0 and self._when == "before":
            raise Died
        change()
        if self._left == 0:
            raise Died


def host_with(bench: Bench, *names: str, current: bool = True) -> Host:
    """The host with the keys in these files, the first of them for new backups."""
    paths = [bench.top / name for name in names]
    keys = open_keys(KeySettings(paths.pop(0) if paths and current else None, tuple(paths)))
    catalog = Catalog(
        f"file://{bench.store}",
        instance=bench.instance,
        open_storage=lambda root: bench.wrap(open_storage(root)),
        keys=keys,
    )
    return replace(bench.host(), catalog=catalog, keys=keys)


def taken(host: Host, number: int, *, parent: Backup | None = None, instance: str = "guest1") -> Backup:
    """A backup as the host's keys make it; of its data only the key counts here."""
    made = manifest(number, parent=parent, instance_id=InstanceId(instance))
    return host.catalog.publish(made, data_key=host.catalog.new_data_key(made.instance_id, made.id))
