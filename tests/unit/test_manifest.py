"""Manifests: their bytes to the byte, and every way in which a stranger's may be wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent import manifest as module
from guestagent.errors import Corrupt, Foreign
from guestagent.manifest import Backup, Manifest, Parent, Segment, digest, reading, sealed, timestamp
from guestagent.model import MAX_LSN, Binlog, Kind, backup_id
from tests.manifests import ROOT, STARTED, a_manifest, child_of, lsns, stored

CANONICAL = (
    '{"binlog":{"file":"binlog.000001","gtid":"0-1-7","position":342},"compression":"zstd","description":"",'
    '"digest":"d5f29c2f7fcc0007724114e545c56d4cbe7b0133fd90f674019caa18ed80a1c5",'
    '"encryption":null,"engine":{"name":"mariabackup","version":"10.11.19"},"finished":"2026-11-22T14:01:30.125Z",'
    '"format":1,"id":"00000000-0000-0000-0000-000000000001","incarnation":"00000000-0000-0000-0000-000000000000",'
    '"instance_id":"guest1","lsn":{"from":0,"last":110,"to":100},"name":"backup0","parent":null,"segments":['
    '{"index":0,"raw_size":4000,"sha256":"5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9",'
    '"stored_size":1000},{"index":1,"raw_size":500,"sha256":'
    '"6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b","stored_size":200}],'
    '"server":{"datastore":"mariadb","version":"10.11.19-MariaDB-0+deb12u1"},"sizes":{"raw":4500,"stored":1200},'
    '"started":"2026-11-22T14:00:00.125Z","stream":{"files":2,"format":"mbstream","ordered_from":null},"type":"full"}'
)

PARENT = Parent(id=backup_id("00000000-0000-0000-0000-0000000000ff"), location=f"{ROOT}/guest1/x", checksum="ab" * 32)


def incremental() -> Manifest:
    """A manifest in which every key has something."""
    whole = a_manifest(kind=Kind.INCREMENTAL, parent=PARENT, lsn=lsns(50, 100, 110), description="before the move")
    return replace(whole, stream=replace(whole.stream, ordered_from=1))


def document(manifest: Manifest | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((manifest or incremental()).to_bytes())
    return found


def parsed(content: Any) -> Manifest:
    return Manifest.from_bytes(sealed(content))


def refusal(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(Corrupt) as caught:
        Manifest.from_bytes(data)
    return caught.value.what


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The document with another value at ``path``."""
    content = document()
    at(content, path[:-1])[path[-1]] = value
    return content


def without(path: tuple[Any, ...]) -> dict[str, Any]:
    content = document()
    del at(content, path[:-1])[path[-1]]
    return content


def paths(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of the document, however deep."""
    if isinstance(content, list):
        return [path for index, value in enumerate(content) for path in paths(value, (*above, index))]
    if isinstance(content, dict):
        below = [path for key, value in content.items() for path in paths(value, (*above, key))]
        return [(*above, key) for key in content] + below
    return []


EVERY_KEY = paths(document())
NULLABLE = {("parent",), ("binlog",), ("encryption",), ("stream", "ordered_from")}


def named(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


# The bytes


def test_a_manifest_is_canonical_to_the_byte() -> None:
    assert a_manifest().to_bytes() == CANONICAL.encode()


def test_every_bit_of_a_manifest_is_proven() -> None:
    data = incremental().to_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            Manifest.from_bytes(bytes(damaged))


def test_a_manifest_changed_by_hand_is_told() -> None:
    assert refusal(document() | {"name": "another"}) == "manifest: its digest does not fit: it was damaged"


def test_what_can_be_read_and_not_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_deep(*_: object, **__: object) -> str:
        raise RecursionError

    content = document()
    monkeypatch.setattr("guestagent.manifest.canonical.json.dumps", too_deep)
    with pytest.raises(Corrupt, match="nested too deeply"):
        sealed(content)


def test_a_manifest_comes_back_as_it_was() -> None:
    for manifest in (a_manifest(), incremental(), a_manifest(binlog=None, compression="none")):
        again = Manifest.from_bytes(manifest.to_bytes())

        assert again == manifest
        assert again.to_bytes() == manifest.to_bytes()


def test_what_was_left_out_is_told_where_there_is_any() -> None:
    assert b"left_out" not in a_manifest().to_bytes()
    manifest = a_manifest(left_out=(7, 2**32 - 1))
    assert b'"left_out":[7,4294967295]' in manifest.to_bytes()
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize("value", [[-1], [2**32], [True], ["7"], [7.5], [None], [[7]]])
def test_what_was_left_out_are_numbers(value: list[Any]) -> None:
    assert refusal(document() | {"left_out": value}).startswith("manifest: left_out has what is no whole number")


@pytest.mark.parametrize("value", [7, "7", None, {"7": 7}])
def test_what_was_left_out_is_a_list(value: Any) -> None:
    assert refusal(document() | {"left_out": value}).startswith("manifest: left_out is of type ")


@given(name=st.text(), gtid=st.text())
def test_any_text_makes_a_manifest_that_can_be_read(name: str, gtid: str) -> None:
    data = a_manifest(name=name, binlog=Binlog("binlog.000001", 342, gtid)).to_bytes()

    assert Manifest.from_bytes(data).to_bytes() == data


def test_text_is_utf8_and_not_escaped() -> None:
    assert '"name":"Gr\u00fc\u00dfe \U0001f42c"'.encode() in a_manifest(name="Gr\u00fc\u00dfe \U0001f42c").to_bytes()


def test_what_is_not_unicode_is_replaced_when_written() -> None:
    data = a_manifest(name="caf\udce9", description="\ud83d").to_bytes()
    manifest = Manifest.from_bytes(data)

    assert (manifest.name, manifest.description) == ("caf\ufffd", "\ufffd")


def test_sizes_are_the_sums_over_the_segments() -> None:
    assert (a_manifest().raw_size, a_manifest().stored_size) == (4500, 1200)


def test_times_have_milliseconds() -> None:
    assert timestamp(datetime(2026, 1, 2, 3, 4, 5, 6789, tzinfo=UTC)) == "2026-01-02T03:04:05.006Z"


def test_a_digest_is_sha256_in_hex() -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    assert digest(b"abc") == digest(bytearray(b"abc")) == digest(memoryview(b"abc")) == known


# Keys of a newer version


def test_unknown_keys_are_kept_where_they_were() -> None:
    content = document()
    content["colour"] = {"deep": [1, 2.5, None]}
    content["engine"]["build"] = "abc"
    content["lsn"]["checkpoint"] = {"a": 1}
    manifest = parsed(content)

    assert manifest.unknown == {
        "colour": {"deep": [1, 2.5, None]},
        "engine": {"build": "abc"},
        "lsn": {"checkpoint": {"a": 1}},
    }
    assert manifest.to_bytes() == sealed(content)


def test_known_keys_win_over_unknown_ones() -> None:
    manifest = replace(a_manifest(), unknown={"name": {"x": 1}, "engine": "old", "lsn": {"to": 1, "x": 2}})
    content = document(manifest)

    assert (content["name"], content["engine"]["name"], content["lsn"]) == (
        "backup0",
        "mariabackup",
        {"from": 0, "to": 100, "last": 110, "x": 2},
    )


def test_unknown_keys_of_a_segment_are_passed_over() -> None:
    content = document()
    content["segments"][0]["cipher"] = "x"

    assert parsed(content) == incremental()


@pytest.mark.parametrize("newer", [0, 2, 999])
def test_another_format_is_refused(newer: int) -> None:
    with pytest.raises(Corrupt, match=f"manifest of format {newer}, and this version reads 1") as caught:
        parsed(changed(("format",), newer))
    assert caught.value.hint == "use a newer guestagent"
    assert isinstance(caught.value, Foreign) is (newer > 1)


def test_another_format_is_told_before_anything_else_is_looked_at() -> None:
    assert refusal({"format": 2}).startswith("manifest of format 2")


def test_a_cipher_that_is_not_known_is_refused() -> None:
    assert refusal(changed(("encryption",), {"cipher": "aes"})).startswith("manifest: encryption: cipher is 'aes'")


def test_an_encrypted_backup_without_a_mac_is_refused() -> None:
    assert refusal(changed(("encryption",), {"cipher": "AES-256-GCM", "sealed": "x"})) == "manifest: mac is missing"


# Keys that are wrong


@pytest.mark.parametrize("path", EVERY_KEY, ids=named)
def test_every_key_must_be_there(path: tuple[Any, ...]) -> None:
    assert refusal(without(path)).endswith(f"{path[-1]} is missing")


@pytest.mark.parametrize("path", EVERY_KEY, ids=named)
@pytest.mark.parametrize("value", [True, 1.0, None, "", [], {}, 7, -1], ids=repr)
def test_every_key_has_one_type(path: tuple[Any, ...], value: Any) -> None:
    right = "dict" if path == ("encryption",) else type(at(document(), path)).__name__
    if type(value).__name__ == right or (value is None and path in NULLABLE):
        return

    assert f"{path[-1]} is of type {type(value).__name__}, not {right}" in refusal(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        (("id",), "x", "id: not a backup id: 'x'"),
        (("instance_id",), "..", "instance_id: not an instance id: '..'"),
        (("type",), "partial", "type is 'partial', not one of full, incremental"),
        (("parent", "id"), "x", "parent: id: not a backup id"),
        (("parent", "checksum"), "AB" * 32, "parent: checksum is not a sha256"),
        (("parent", "checksum"), "ab" * 31, "parent: checksum is not a sha256"),
        (("engine", "name"), "mysqldump", "engine: name is 'mysqldump'"),
        (("engine", "version"), "new", "engine: version: no version in 'new'"),
        (("server", "datastore"), "postgres", "server: datastore is 'postgres'"),
        (("server", "version"), "10.11", "server: version: no version in '10.11'"),
        (("compression",), "lz4", "compression is 'lz4', not one of zstd, none"),
        (("stream", "format"), "tar", "stream: format is 'tar'"),
        (("stream", "ordered_from"), 2, "stream: ordered_from is out of range: 2"),
        (("stream", "ordered_from"), -1, "stream: ordered_from is out of range: -1"),
        (("started",), "yesterday", "started is not a time"),
        (("finished",), "2026-02-30T00:00:00.000Z", "finished is not a time"),
        (("finished",), "2026-02-20T00:00:00.000+01:00", "finished is not a time"),
        (("segments",), [], "manifest with 0 segments"),
        (("segments",), ["x", "y"], "manifest: segment 0 is not a JSON object"),
        (("segments", 1, "index"), 0, "segment 0 stands where 1 belongs"),
        (("segments", 1, "sha256"), "x", "segment 1: sha256 is not a sha256"),
        (("segments", 1, "raw_size"), module.MAX_SEGMENT_SIZE + 1, "segment 1: raw_size is out of range"),
        (("segments", 1, "stored_size"), module.MAX_SEGMENT_SIZE + 1, "segment 1: stored_size is out of range"),
        (("lsn", "last"), MAX_LSN + 1, "lsn: last is out of range"),
        (("binlog", "position"), -1, "binlog: position is out of range"),
        (("stream", "files"), -1, "stream: files is out of range"),
    ],
)
def test_a_value_out_of_its_range_is_named(path: tuple[Any, ...], value: Any, wrong: str) -> None:
    assert wrong in refusal(changed(path, value))


@pytest.mark.parametrize("path", [path for path in EVERY_KEY if isinstance(at(document(), path), str)], ids=named)
def test_a_text_that_is_not_unicode_is_named(path: tuple[Any, ...]) -> None:
    assert f"{path[-1]} is not Unicode text" in refusal(changed(path, "a\ud800b"))


def test_a_shown_value_is_cut() -> None:
    assert len(refusal(changed(("compression",), "x" * 10_000))) < 200


# What it says twice must agree


@pytest.mark.parametrize("key", ["raw", "stored"])
def test_sizes_must_be_the_sums(key: str) -> None:
    assert refusal(changed(("sizes", key), 1)) == "manifest: sizes are not the sums over the segments"


def test_an_incremental_has_a_parent_and_a_full_has_none() -> None:
    wrong = "manifest: a full has no parent and an incremental has one"

    assert refusal(changed(("parent",), None)) == wrong
    assert refusal(changed(("type",), "full")) == wrong


def test_a_full_begins_at_nothing() -> None:
    assert refusal(document(a_manifest(lsn=lsns(1, 100, 110)))) == "manifest: a full begins at LSN 0"


@pytest.mark.parametrize("order", [(50, 49, 110), (50, 100, 99)])
def test_lsns_are_in_order(order: tuple[int, int, int]) -> None:
    assert refusal(document(replace(incremental(), lsn=lsns(*order)))) == "manifest: LSNs are out of order"


def test_the_largest_lsn_is_one() -> None:
    manifest = a_manifest(lsn=lsns(0, MAX_LSN, MAX_LSN))

    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_lsns_of_an_idle_server_are_in_order() -> None:
    manifest = replace(incremental(), lsn=lsns(50, 50, 50))

    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


# Bytes that are no manifest


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + CANONICAL.encode(),
        CANONICAL.encode("utf-16"),
        CANONICAL.encode("utf-32"),
        CANONICAL.replace("backup0", "caf\u00e9").encode("latin-1"),
        CANONICAL.encode()[:-1],
        CANONICAL.encode() + b"x",
        CANONICAL.replace("4500", "1" * 5000).encode(),
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    ],
    ids=range(13),
)
def test_what_is_not_json_in_utf8_is_refused(data: bytes) -> None:
    assert refusal(data).startswith("manifest is not JSON: ")


@pytest.mark.parametrize("content", [[], "x", 1, None, True])
def test_what_is_no_object_is_refused(content: Any) -> None:
    assert refusal(content) == "manifest is not a JSON object"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused_even_under_an_unknown_key(number: str) -> None:
    data = CANONICAL.replace('"format":1', f'"format":1,"ratio":{number}').encode()

    assert refusal(data) == f"manifest is not JSON: {number} is no number"


@pytest.mark.parametrize(
    ("once", "twice"),
    [
        ('"format":1', '"format":1,"format":1'),
        ('"position":342', '"position":342,"position":343'),
        ('"index":1', '"index":1,"index":1'),
        ('"format":1', '"format":1,"x":{"y":1,"y":2}'),
    ],
)
def test_a_key_twice_is_refused_however_deep(once: str, twice: str) -> None:
    assert refusal(CANONICAL.replace(once, twice).encode()) == "manifest is not JSON: an object has a key twice"


def test_a_manifest_that_is_too_large_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = a_manifest().to_bytes()
    monkeypatch.setattr(reading, "MAX_MANIFEST", len(data))
    Manifest.from_bytes(data)

    monkeypatch.setattr(reading, "MAX_MANIFEST", len(data) - 1)

    assert "larger than any" in refusal(data)


def test_more_segments_than_any_backup_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SEGMENTS", 2)
    Manifest.from_bytes(a_manifest().to_bytes())

    monkeypatch.setattr(module, "MAX_SEGMENTS", 1)

    assert refusal(document()) == "manifest with 2 segments"


@given(st.data())
def test_a_manifest_with_any_value_changed_is_read_or_corrupt(data: st.DataObject) -> None:
    content = copy.deepcopy(document())
    path = data.draw(st.sampled_from(EVERY_KEY))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    value = data.draw(
        st.recursive(scalars, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=4)
    )
    at(content, path[:-1])[path[-1]] = value
    try:
        manifest = parsed(content)
    except Corrupt:
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


# Backups


def test_a_backup_tells_its_child_what_to_remember() -> None:
    backup = stored(a_manifest())

    assert backup.as_parent() == Parent(id=backup.id, location=backup.location, checksum=backup.checksum)


def test_properties_have_troves_names_and_then_ours() -> None:
    parent = stored(a_manifest())
    backup = child_of(parent, 1, name="backup1.1", description="nightly")

    assert list(backup.properties().items()) == [
        ("created", "2026-11-22T14:00:00Z"),
        ("description", "nightly"),
        ("id", "00000000-0000-0000-0000-000000000002"),
        ("instance_id", "guest1"),
        ("locationRef", "file:///srv/backups/guest1/00000000-0000-0000-0000-000000000002"),
        ("name", "backup1.1"),
        ("parent_id", "00000000-0000-0000-0000-000000000001"),
        ("size", 0.0),
        ("status", "COMPLETED"),
        ("updated", "2026-11-22T14:01:30Z"),
        ("type", "incremental"),
        ("checksum", backup.checksum),
        ("datastore", "mariadb"),
        ("datastore_version", "10.11.19"),
        ("from_lsn", 100),
        ("to_lsn", 200),
        ("stored_size", 1200),
        ("raw_size", 4500),
        ("binlog", "binlog.000001:342"),
        ("gtid", "0-1-7"),
        ("duration", 90.0),
        ("note", None),
    ]


def test_properties_of_a_full_without_a_binary_log() -> None:
    segments = (Segment(0, 200 << 20, 3 << 26, digest(b"")),)
    manifest = a_manifest(binlog=None, segments=segments, finished=STARTED + timedelta(seconds=1, milliseconds=260))
    shown = Backup(manifest, "", "").properties()

    assert (shown["parent_id"], shown["binlog"], shown["gtid"]) == (None, None, None)
    assert (shown["size"], shown["duration"]) == (0.1875, 1.3)
