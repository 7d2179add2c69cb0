"""The seal: what opens under a data key is exactly what was closed, in its place, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guestagent.errors import Corrupt
from guestagent.manifest import Encryption, Manifest
from guestagent.model import Lsn
from guestagent.streams.seal import KEY_SIZE, TAG_SIZE, Seal, new_data_key
from tests.fakes.backups import number
from tests.manifests import a_manifest

KEY = bytes(range(KEY_SIZE))
OWNER = a_manifest().id
PLAIN = b"what stands in a segment" * 100


def seal(key: bytes = KEY) -> Seal:
    return Seal(key, OWNER)


def opened(one: Seal, index: int, last: bool, stored: bytes) -> bytes:
    return bytes(one.open(index, last, stored, memoryview(bytearray(len(stored) + 5))))


def test_a_segment_comes_back_in_its_place() -> None:
    closed = seal().close(3, False, PLAIN)
    assert len(closed) == len(PLAIN) + TAG_SIZE
    assert PLAIN[:16] not in closed
    assert opened(seal(), 3, False, closed) == PLAIN


def test_the_form_is_the_documented_one() -> None:
    key = _hkdf(KEY, b"guestagent segments 1")
    place = f'{{"backup_id":"{OWNER}","index":7,"last":true}}'.encode()
    assert seal().close(7, True, PLAIN) == AESGCM(key).encrypt((7).to_bytes(12, "big"), PLAIN, place)
    made = seal().lock(a_manifest())
    core = json.dumps(
        {key: value for key, value in json.loads(made.to_bytes()).items() if key not in ("digest", "mac")},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    words = hmac.new(_hkdf(KEY, b"guestagent manifest 1"), hashlib.sha256(core).hexdigest().encode(), "sha256")
    assert made.mac == words.hexdigest()


def _hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block, without a library."""
    extracted = hmac.new(bytes(32), key, "sha256").digest()
    return hmac.new(extracted, info + b"\x01", "sha256").digest()


@pytest.mark.parametrize(("index", "last"), [(4, False), (3, True), (2**32 + 3, False)])
def test_it_opens_nowhere_else(index: int, last: bool) -> None:
    with pytest.raises(Corrupt, match="does not open under the backup's key"):
        opened(seal(), index, last, seal().close(3, False, PLAIN))


def test_it_opens_for_no_other_backup_and_no_other_key() -> None:
    closed = seal().close(0, True, PLAIN)
    for other in (Seal(KEY, number(77)), Seal(new_data_key(), OWNER)):
        with pytest.raises(Corrupt):
            opened(other, 0, True, closed)


@pytest.mark.parametrize("at", [0, 1, 500, len(PLAIN) - 1, len(PLAIN), len(PLAIN) + TAG_SIZE - 1])
def test_a_flipped_bit_is_noticed_wherever_it_is(at: int) -> None:
    closed = bytearray(seal().close(0, True, PLAIN))
    closed[at] ^= 1
    with pytest.raises(Corrupt):
        opened(seal(), 0, True, bytes(closed))


@pytest.mark.parametrize("size", [0, 1, TAG_SIZE - 1, TAG_SIZE])
def test_a_segment_that_is_cut_is_noticed(size: int) -> None:
    with pytest.raises(Corrupt):
        opened(seal(), 0, True, seal().close(0, True, PLAIN)[:size])


def test_no_two_segments_share_a_keystream() -> None:
    zeros = bytes(64)
    assert len({seal().close(index, False, zeros) for index in range(100)}) == 100


def locked(**changes: Any) -> Manifest:
    return Manifest.from_bytes(seal().lock(a_manifest(**changes)).to_bytes())


def test_a_manifest_hides_its_words_and_gives_them_back() -> None:
    whole = a_manifest(name="payroll", description="before the move")
    stored = seal().lock(whole).to_bytes()
    assert b"payroll" not in stored
    assert b"the move" not in stored
    assert b"binlog.000001" not in stored
    opened = seal().unlock(Manifest.from_bytes(stored))
    assert (opened.name, opened.description, opened.binlog) == (whole.name, whole.description, whole.binlog)
    assert opened.segments == whole.segments


def test_a_manifest_without_a_binlog_has_none_afterwards() -> None:
    assert seal().unlock(locked(binlog=None)).binlog is None


def test_two_locks_of_one_manifest_differ() -> None:
    assert seal().lock(a_manifest()) != seal().lock(a_manifest())


@pytest.mark.parametrize(
    "change",
    [
        {"incarnation": "another"},
        {"segments": a_manifest().segments[:1]},
        {"segments": (a_manifest().segments[0], replace(a_manifest().segments[1], sha256="0" * 64))},
        {"lsn": replace(a_manifest().lsn, last=Lsn(111))},
        {"unknown": {"x": 1}},
        {"mac": "0" * 64},
        {"encryption": None, "mac": None},
        {"encryption": Encryption("AES-256-GCM", base64.b64encode(bytes(40)).decode())},
    ],
)
def test_a_change_by_somebody_without_the_key_is_noticed(change: dict[str, object]) -> None:
    changed = replace(seal().lock(a_manifest()), **change)  # type: ignore[arg-type]
    with pytest.raises(Corrupt, match="its MAC does not fit: it was not written by a holder of the key"):
        seal().unlock(Manifest.from_bytes(changed.to_bytes()))


def with_words(sealed: str) -> Manifest:
    """A manifest that a holder of the key has written, with an odd sealed part."""
    odd = replace(seal().lock(a_manifest()), encryption=Encryption("AES-256-GCM", sealed))
    odd = replace(odd, mac=seal()._mac_of(odd.core()))
    return Manifest.from_bytes(odd.to_bytes())


@pytest.mark.parametrize("sealed", ["", "not base64!", base64.b64encode(bytes(5)).decode(), "AAAA" * 20])
def test_words_that_do_not_open_are_told(sealed: str) -> None:
    with pytest.raises(Corrupt, match="its sealed part does not open"):
        seal().unlock(with_words(sealed))


@pytest.mark.parametrize("words", [b"{}", b"[]", b"7", b'{"name": "x", "description": "", "binlog": {"odd": 1}}'])
def test_words_of_another_form_are_told(words: bytes) -> None:
    nonce = bytes(12)
    closed = base64.b64encode(nonce + seal()._words.encrypt(nonce, words, OWNER.encode())).decode()
    with pytest.raises(Corrupt, match="its sealed part is not what this version writes"):
        seal().unlock(with_words(closed))
