"""Encrypted chains, as stories: without the key nobody reads, changes or forges them, and with it they come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from guestagent.errors import ConfigError, Corrupt, Foreign, GuestagentError, Refused
from guestagent.keys import KeyRing, KeySettings
from guestagent.keys.file import generate
from guestagent.manifest import Backup, Manifest
from guestagent.operations.delete import delete_damaged
from guestagent.operations.sweep import sweep_own
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from tests.fakes.bench import BEFORE, Bench, data_in, new_id
from tests.fakes.stores import Lies, Through


def ring(top: Path, current: str | None, *old: str) -> KeyRing:
    """The keys of that name, made where they are not there yet."""
    paths = {name: top / f"{name}.key" for name in (*([current] if current else []), *old)}
    for path in paths.values():
        if not path.exists():
            generate(path)
    return KeyRing(
        KeySettings(key_file=paths[current] if current else None, old_key_files=tuple(paths[name] for name in old))
    )


@pytest.fixture
def secret(bench: Bench) -> Bench:
    """A bench whose backups are encrypted."""
    bench.keys = ring(bench.top, "first")
    return bench


def everything(bench: Bench) -> bytes:
    return b"".join(bench.objects().values())


def untouched(bench: Bench) -> bool:
    return data_in(bench.datadir) == BEFORE


def test_a_chain_comes_back_and_the_store_shows_nothing_of_it(secret: Bench) -> None:
    chain = secret.chain(3)
    for backup, tree in chain:
        secret.restore(backup, replace=True, start=False)
        assert data_in(secret.datadir) == tree
    stored = everything(secret)
    for words in (b"write 0", b"shop/orders", b"ibdata1", b"XBSTCK01", chain[0][0].manifest.name.encode() + b'"'):
        assert words not in stored, words
    assert len(verify(secret.host(), chain[-1][0].id, Watch())) == 3


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_compression_goes_with_it(secret: Bench, compression: str) -> None:
    tree = secret.write("some words")
    backup = secret.backup(compression=compression)
    secret.restore(backup, replace=True, start=False)
    assert data_in(secret.datadir) == tree


def test_uploads_are_read_back_under_the_key(secret: Bench) -> None:
    assert secret.backup(verify_uploads="bytes").manifest.encryption is not None


def test_no_two_backups_share_a_key(secret: Bench) -> None:
    first, second = secret.backup(), secret.backup()
    assert first.data_key != second.data_key
    assert len(first.data_key) == 32
    assert first.data_key.hex() not in repr(first)


def _objects(bench: Bench) -> list[str]:
    return sorted(bench.objects())


def test_any_object_that_was_changed_is_refused_before_the_datadir_is_touched(secret: Bench) -> None:
    (full, _), (incremental, _) = secret.chain(2)
    for name in _objects(secret):
        path = secret.store / name
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(GuestagentError) as caught:
                secret.restore(incremental, replace=True, start=False)
            assert full.id in str(caught.value) or incremental.id in str(caught.value), (name, at)
            assert untouched(secret), (name, at)
        path.write_bytes(whole)
    secret.restore(incremental, replace=True, start=False)


def _forged(bench: Bench, backup: Backup, **changes: object) -> None:
    """A manifest that somebody who may write to the store, and has no key, puts in the place of another."""
    path = bench.object(backup, "manifest.json")
    known = Manifest.from_bytes(path.read_bytes())
    path.write_bytes(replace(known, **changes).to_bytes())  # type: ignore[arg-type]


def test_segments_cannot_change_places_though_the_manifest_says_so(secret: Bench) -> None:
    backup = secret.backup()
    first, second = backup.manifest.segments[:2]
    one, other = (secret.object(backup, f"data/{index:08d}") for index in (0, 1))
    body = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(body)
    swapped = (replace(second, index=0), replace(first, index=1), *backup.manifest.segments[2:])
    _forged(secret, backup, segments=swapped)
    with pytest.raises(Corrupt, match="MAC does not fit"):
        secret.restore(backup, replace=True, start=False)
    assert untouched(secret)


def test_a_backup_cut_short_with_its_manifest_is_refused(secret: Bench) -> None:
    backup = secret.backup()
    _forged(secret, backup, segments=backup.manifest.segments[:-1])
    with pytest.raises(Corrupt, match="MAC does not fit"):
        secret.restore(backup, replace=True, start=False)


def test_the_key_of_another_backup_opens_nothing(secret: Bench) -> None:
    backup, other = secret.backup(), secret.backup()
    secret.object(backup, "key.json").write_bytes(secret.object(other, "key.json").read_bytes())
    with pytest.raises(Corrupt, match=f"{backup.id}.*does not open"):
        secret.restore(backup, replace=True, start=False)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', '{"format":1,"key_id":7,"wrapped":""}',
                                  '{"format":1,"key_id":"x","wrapped":"?"}', "[" * 9999])  # fmt: skip
def test_a_key_object_that_is_none(secret: Bench, text: str) -> None:
    backup = secret.backup()
    secret.object(backup, "key.json").write_text(text)
    with pytest.raises(Corrupt, match=r"key\.json: "):
        secret.restore(backup, replace=True, start=False)


def test_a_key_object_of_a_newer_form_is_not_damaged(secret: Bench) -> None:
    backup = secret.backup()
    secret.object(backup, "key.json").write_text('{"format": 2}')
    with pytest.raises(Foreign, match="not a wrapped key of a known format; use a newer guestagent"):
        secret.host().catalog.get(backup.id)
    with pytest.raises(Refused, match=r"is not damaged: .*key\.json: .*; use a newer guestagent"):
        delete_damaged(secret.host(), backup.id, Watch())


def test_a_backup_whose_key_is_gone_is_damaged(secret: Bench) -> None:
    backup = secret.backup()
    secret.object(backup, "key.json").unlink()
    note = delete_damaged(secret.host(), backup.id, Watch()).properties()["note"]
    assert note.endswith(f"{backup.id}/key.json is missing")
    assert secret.objects() == {}


def test_a_key_object_that_is_gone(secret: Bench) -> None:
    backup = secret.backup()
    secret.object(backup, "key.json").unlink()
    with pytest.raises(Corrupt, match=r"key\.json is missing; without it nothing can decrypt the backup"):
        secret.restore(backup, replace=True, start=False)


@pytest.mark.parametrize("names", [(None,), ("second",)])
def test_without_the_key_a_backup_is_listed_and_nothing_else(secret: Bench, names: tuple[str | None]) -> None:
    backup = secret.backup()
    secret.keys = ring(secret.top, *names)
    host = secret.host()
    (seen,) = host.catalog.backups()
    assert (seen.id, seen.manifest.name, seen.manifest.description) == (backup.id, "(sealed)", "(sealed)")
    assert seen.locked_by.startswith("file:")
    refused = f"backup {backup.id} is encrypted with key {seen.locked_by}, which is not here; name its file in "
    for story in (lambda: secret.restore(backup, replace=True), lambda: verify(host, backup.id, Watch())):
        with pytest.raises(ConfigError) as caught:
            story()
        assert str(caught.value).startswith(refused)
    assert untouched(secret)


def test_a_chain_goes_on_under_a_new_key_while_the_old_one_is_at_hand(secret: Bench) -> None:
    full = secret.backup()
    secret.keys = ring(secret.top, "second", "first")
    tree = secret.write("later")
    incremental = secret.backup(full)
    secret.restore(incremental, replace=True, start=False)
    assert data_in(secret.datadir) == tree
    secret.keys = ring(secret.top, "second")
    with pytest.raises(ConfigError, match=f"backup {full.id} is encrypted with key"):
        secret.restore(incremental, replace=True, start=False)


def test_rewrapped_backups_restore_under_the_new_key_alone(secret: Bench) -> None:
    (full, _), (incremental, tree) = secret.chain(2)
    before = {name: body for name, body in secret.objects().items() if not name.endswith("key.json")}
    secret.keys = ring(secret.top, "second", "first")
    host = secret.host()
    new = secret.keys.current
    assert new is not None
    for one in host.catalog.backups():
        host.catalog.rewrap(one, new)
        assert host.catalog.key_id_of(one) == new.id
    assert {name: body for name, body in secret.objects().items() if not name.endswith("key.json")} == before
    secret.keys = ring(secret.top, "second")
    secret.restore(incremental, replace=True, start=False)
    assert data_in(secret.datadir) == tree
    secret.keys = ring(secret.top, "first")
    with pytest.raises(ConfigError, match=f"{full.id}|{incremental.id}"):
        secret.restore(incremental, replace=True, start=False)


def test_a_key_that_is_not_at_hand_is_never_wrapped_anew(secret: Bench) -> None:
    secret.backup()
    new = ring(secret.top, "second").current
    assert new is not None
    secret.keys = None
    catalog = secret.host().catalog
    (locked,) = catalog.backups()
    with pytest.raises(Refused, match=f"the data key of backup {locked.id} is not at hand"):
        catalog.rewrap(locked, new)


class LiesOnce(Through):
    """Confirms the first put of a wrapped key, and cuts it in half."""

    lied = False

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        if key.endswith("key.json") and not self.lied:
            self.lied = True
            body = body[: len(body) // 2]
        super().put(key, body)


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        (lambda _: None, "is missing"),
        (lambda body: body[:-1], r"should have \d+ bytes that were put there, and has \d+ others"),
    ],
    ids=["missing", "short"],
)
def test_a_key_that_the_store_does_not_keep_is_found_out_before_the_dump(
    secret: Bench, instead: Callable[[bytes], bytes | None], why: str
) -> None:
    wanted = new_id()
    secret.wrap = lambda inner: Lies(inner, "key.json", instead)
    with pytest.raises(Corrupt, match=f"{wanted}/key.json {why}; the store lost an upload"):
        secret.backup(id=wanted)
    assert not secret.runs("backup")
    assert secret.objects() == {}


def test_a_key_that_the_store_does_not_keep_is_put_once_more(secret: Bench) -> None:
    """What it replaces may have been the only key of a backup."""
    secret.wrap = LiesOnce
    backup = secret.backup()
    tree = data_in(secret.source)
    secret.keys = ring(secret.top, "second", "first")
    host, new = secret.host(), secret.keys.current
    assert new is not None
    host.catalog.rewrap(host.catalog.get(backup.id), new)
    secret.keys = ring(secret.top, "second")
    secret.restore(backup, replace=True, start=False)
    assert data_in(secret.datadir) == tree


def test_a_backup_whose_key_is_not_here_is_no_leftover(secret: Bench) -> None:
    backup = secret.backup()
    mark = secret.state / "unfinished" / backup.id
    mark.write_text(backup.location)
    secret.keys = None
    assert sweep_own(secret.host()) == []
    assert not mark.exists()
    assert [found.id for found in secret.catalog().backups()] == [backup.id]


def test_a_backup_that_has_lost_its_key_is_one(secret: Bench) -> None:
    backup = secret.backup()
    secret.object(backup, "key.json").unlink()
    (secret.state / "unfinished" / backup.id).write_text(backup.location)
    assert sweep_own(secret.host()) == [backup.id]
    assert secret.objects() == {}


# Backups that are not encrypted


def test_a_plain_backup_has_no_key(bench: Bench) -> None:
    backup = bench.backup()
    assert backup.data_key == b""
    assert bench.host().catalog.key_id_of(backup) == ""
    assert not [name for name in bench.objects() if name.endswith("key.json")]


def test_a_plain_chain_goes_on_encrypted_and_its_tip_proves_it(bench: Bench) -> None:
    full = bench.backup()
    bench.keys = ring(bench.top, "first")
    tree = bench.write("later")
    incremental = bench.backup(full)
    bench.restore(incremental, replace=True, start=False)
    assert data_in(bench.datadir) == tree


def test_a_plain_backup_is_refused_where_there_is_a_key(bench: Bench) -> None:
    tree = bench.write("old")
    full = bench.backup()
    bench.keys = ring(bench.top, "first")
    with pytest.raises(Refused, match=f"backup {full.id} is not encrypted.*--accept-unencrypted {full.id}"):
        bench.restore(full, replace=True, start=False)
    assert untouched(bench)
    bench.restore(full, replace=True, start=False, accept_unencrypted=full.id)
    assert data_in(bench.datadir) == tree


def test_a_plain_backup_is_refused_beside_encrypted_ones_though_nobody_has_a_key(bench: Bench) -> None:
    full = bench.backup()
    bench.keys = ring(bench.top, "first")
    encrypted = bench.backup()
    bench.keys = None
    with pytest.raises(Refused, match="is not encrypted, and others of guest1 are"):
        bench.restore(full, replace=True, start=False)
    with pytest.raises(Refused, match="is not encrypted"):
        bench.restore(full, replace=True, start=False, accept_unencrypted=encrypted.id)
    bench.restore(full, replace=True, start=False, accept_unencrypted=full.id)


@pytest.mark.parametrize("left", ["key.json", "key.next.json"])
def test_a_spare_tells_as_well_that_others_are_encrypted(bench: Bench, left: str) -> None:
    """It is all that is left where the store has lost the key that a rotation had replaced."""
    full = bench.backup()
    bench.keys = ring(bench.top, "first")
    encrypted = bench.backup()
    bench.keys = None
    bench.object(encrypted, "key.json").rename(bench.object(encrypted, left))
    with pytest.raises(Refused, match="is not encrypted, and others of guest1 are"):
        bench.restore(full, replace=True, start=False)
    assert untouched(bench)


def test_who_knows_the_checksum_needs_no_key(bench: Bench) -> None:
    full = bench.backup()
    bench.keys = ring(bench.top, "first")
    bench.restore(full, replace=True, start=False, checksum=full.checksum)
