"""What every store does, whatever its driver: the same tests over files, S3 on moto, and S3 on a real Swift."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from guestagent.errors import Corrupt, ObjectExists, ObjectMissing, StorageError, UsageError
from guestagent.storage import S3Settings, Storage, open_storage
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY, make_bucket, moto_s3
from tests.servers.swift import LISTING_PAGE, shared_swift

MIB = 1 << 20
ODD_KEYS = (
    "with space/a b",
    "plus+and+more",
    "percent/100%/%41%2F",
    "hash#tag?query=1&b=2",
    "unicode/ünïcode-日本-\U0001f600",
    "quotes/'single'\"double\"<angle>",
    "dots/..a/...",
    ".hidden/.file",
    "tilde~/star*/(brackets)/[x]/{y}|\\;:,=@!$",
)
NO_KEYS = ("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/..", "a\0b", "a\nb", "\ud800", "../a", "/etc/x")
S3_PREFIX = "pre fix+ü/deep"
MOTO_PAGE = 100
"""Keys in one page of a listing, instead of a thousand."""

_number = itertools.count(1)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, moto_s3() as endpoint_url:
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(MOTO_PAGE))
        yield endpoint_url


def _file(request: pytest.FixtureRequest) -> Storage:
    directory: Path = request.getfixturevalue("tmp_path")
    return open_storage((directory / "the root" / "deeper").as_uri())


def _moto(request: pytest.FixtureRequest) -> Storage:
    endpoint_url: str = request.getfixturevalue("moto")
    bucket = f"bucket{next(_number)}"
    make_bucket(endpoint_url, bucket)
    settings = S3Settings(endpoint_url=endpoint_url, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)
    return open_storage(f"s3://{bucket}/{S3_PREFIX}", s3=settings)


def _swift(_: pytest.FixtureRequest) -> Storage:
    bucket = f"bucket{next(_number)}"
    shared_swift().make_bucket(bucket)
    return open_storage(f"s3://{bucket}/{S3_PREFIX}", s3=shared_swift().settings())


@pytest.fixture(
    params=[
        pytest.param((_file, 1005), id="file"),
        pytest.param((_moto, 2 * MOTO_PAGE + 5), id="moto"),
        pytest.param((_swift, 2 * LISTING_PAGE + 5), id="swift", marks=pytest.mark.integration),
    ]
)
def driver(request: pytest.FixtureRequest) -> tuple[Callable[[pytest.FixtureRequest], Storage], int]:
    chosen: tuple[Callable[[pytest.FixtureRequest], Storage], int] = request.param
    return chosen


@pytest.fixture
def store(
    request: pytest.FixtureRequest, driver: tuple[Callable[[pytest.FixtureRequest], Storage], int]
) -> Iterator[Storage]:
    opened = driver[0](request)
    yield opened
    opened.close()


@pytest.fixture
def many(driver: tuple[Callable[[pytest.FixtureRequest], Storage], int]) -> int:
    """More keys than one page of a listing holds."""
    return driver[1]


def keys(store: Storage, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


@pytest.mark.parametrize("size", [0, 1, 5 * MIB])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_what_is_put_is_what_one_gets(store: Storage, size: int, kind: Callable[[bytes], bytes | bytearray]) -> None:
    body = random.Random(size).randbytes(size)
    store.put("a/b/with", kind(body), sha256=hashlib.sha256(body).hexdigest())
    store.put("a/b/without", kind(body))
    for key in ("a/b/with", "a/b/without"):
        got = store.get(key, limit=size)
        assert type(got) is bytes
        assert got == body
        assert store.size(key) == size


def test_a_put_replaces(store: Storage) -> None:
    store.put("key", b"old and long")
    store.put("key", b"new")
    assert store.get("key", limit=100) == b"new"
    assert [(info.key, info.size) for info in store.list()] == [("key", 3)]


def test_put_new_takes_a_key_once(store: Storage) -> None:
    store.put_new("a/manifest", bytearray(b"first"))
    with pytest.raises(ObjectExists, match="a/manifest"):
        store.put_new("a/manifest", b"second")
    assert store.get("a/manifest", limit=100) == b"first"
    store.delete(["a/manifest"])
    store.put_new("a/manifest", b"third")
    assert store.get("a/manifest", limit=100) == b"third"


def test_a_store_says_that_it_keeps_conditions(store: Storage) -> None:
    assert store.has_conditional_put("a/probe")
    assert store.get("a/probe", limit=100) == b"first"


def test_a_store_that_has_a_clock_tells_the_time(store: Storage) -> None:
    ahead = store.clock_ahead("a/")
    assert (ahead is None) is store.url.startswith("file:")
    assert ahead is None or abs(ahead) < timedelta(seconds=5)


def test_get_refuses_what_is_longer_than_the_limit(store: Storage) -> None:
    store.put("key", b"12345")
    assert store.get("key", limit=5) == b"12345"
    with pytest.raises(Corrupt, match="longer than 4 bytes"):
        store.get("key", limit=4)
    with pytest.raises(Corrupt):
        store.get("key", limit=0)


@pytest.mark.parametrize("key", ["nothing", "a/b/nothing", "there/below", "ther"])
def test_what_is_not_there_is_missing(store: Storage, key: str) -> None:
    store.put("there", b"1")
    with pytest.raises(ObjectMissing, match=key):
        store.get(key, limit=10)
    with pytest.raises(ObjectMissing, match=key):
        store.size(key)


def test_a_folder_is_no_object(store: Storage) -> None:
    store.put("folder/object", b"1")
    with pytest.raises(ObjectMissing):
        store.get("folder", limit=10)
    with pytest.raises(ObjectMissing):
        store.size("folder")
    store.delete(["folder"])
    assert keys(store) == ["folder/object"]


def test_an_empty_store_lists_nothing(store: Storage) -> None:
    assert keys(store) == []
    assert keys(store, "a/b") == []
    assert list(store.folders()) == []
    assert list(store.folders("a/")) == []
    store.delete(["a/b"])


def test_list_is_ordered_by_key_and_tells_sizes_and_times(store: Storage) -> None:
    names = ["b", "a/c", "a.b", "a-", "a/b/c", "a0", "B", "ä", "a/b!"]
    for name in names:
        store.put(name, name.encode())
    listed = list(store.list())
    assert [info.key for info in listed] == sorted(names)
    assert [info.size for info in listed] == [len(name.encode()) for name in sorted(names)]
    for info in listed:
        assert info.modified.tzinfo == UTC
        assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)


def test_list_takes_any_prefix(store: Storage) -> None:
    names = ["a/b/c", "a/b/d", "a/bc", "ab", "b/a/b"]
    for name in names:
        store.put(name, b"")
    for prefix in ("", "a", "a/", "a/b", "a/b/", "a/b/c", "a/bc", "ab", "b", "c", "a/b/c/", "a/b/x"):
        assert keys(store, prefix) == [name for name in names if name.startswith(prefix)], prefix


def test_folders_are_the_names_one_level_below(store: Storage) -> None:
    for name in ("a/b/c", "a/b/d", "a/e/f/g", "a/file", "ab/c", "file", "a b+c/d"):
        store.put(name, b"")
    assert list(store.folders()) == ["a b+c", "a", "ab"]
    assert list(store.folders("a/")) == ["b", "e"]
    assert list(store.folders("a/e/")) == ["f"]
    assert list(store.folders("a/b/")) == []
    store.delete(["ab/c"])
    assert list(store.folders()) == ["a b+c", "a"]


def test_odd_keys_come_back_as_they_went(store: Storage) -> None:
    for key in ODD_KEYS:
        store.put(key, key.encode())
    store.put_new("new/" + ODD_KEYS[0], b"new")
    assert keys(store) == sorted([*ODD_KEYS, "new/" + ODD_KEYS[0]])
    for key in ODD_KEYS:
        assert store.get(key, limit=1000) == key.encode()
        assert keys(store, key[:-1]) == [key]
    store.delete(ODD_KEYS)
    assert keys(store) == ["new/" + ODD_KEYS[0]]


def test_what_is_no_key_is_refused(store: Storage) -> None:
    for key in NO_KEYS:
        asked: list[Callable[[], object]] = [
            partial(store.put, key, b"1"),
            partial(store.put_new, key, b"1"),
            partial(store.get, key, limit=1),
            partial(store.size, key),
            partial(store.delete, [key]),
        ]
        for ask in asked:
            with pytest.raises(UsageError, match="not an object's key"):
                ask()
    assert keys(store) == []


def test_what_no_key_begins_with_is_refused(store: Storage) -> None:
    for prefix in ("/", "../", "a/../", "a//", "./x", "a\0", "/etc"):
        with pytest.raises(UsageError):
            keys(store, prefix)
        with pytest.raises(UsageError):
            list(store.folders(prefix))


def test_a_folder_ends_with_a_slash(store: Storage) -> None:
    with pytest.raises(UsageError, match="slash"):
        list(store.folders("a"))


def test_delete_takes_what_is_there_and_forgives_what_is_not(store: Storage) -> None:
    for name in ("a/1", "a/2", "b"):
        store.put(name, b"")
    store.delete(name for name in ("a/1", "not/there", "a/1", "b"))
    assert keys(store) == ["a/2"]
    store.delete([])
    assert keys(store) == ["a/2"]


def test_more_keys_than_a_page_holds(store: Storage, many: int) -> None:
    names = [f"guest/{number % 3}/{number:08}" for number in range(many)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    store.put("other", b"kept")
    assert keys(store, "guest/") == sorted(names)
    assert list(store.folders("guest/")) == ["0", "1", "2"]
    store.delete(names)
    assert keys(store) == ["other"]


def test_more_folders_than_a_page_holds(store: Storage, many: int) -> None:
    names = [f"{number:06}" for number in range(min(many, 105))]
    for name in names:
        store.put(f"guest/{name}/manifest.json", b"")
    assert list(store.folders("guest/")) == names


def test_eight_threads_at_once(store: Storage) -> None:
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait(timeout=30)
        for turn in range(6):
            key = f"shared/{worker}/{turn}"
            body = f"{key} ".encode() * 2000
            store.put(key, bytearray(body), sha256=hashlib.sha256(body).hexdigest())
            assert store.get(key, limit=len(body)) == body
            assert store.size(key) == len(body)
            if turn % 2:
                store.delete([key])

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, worker) for worker in range(8)]:
            done.result(timeout=120)
    assert keys(store) == [f"shared/{worker}/{turn}" for worker in range(8) for turn in (0, 2, 4)]


def test_the_url_has_no_slash_at_its_end(store: Storage) -> None:
    assert not store.url.endswith("/")
    assert "://" in store.url


def test_errors_name_the_key_and_the_store(store: Storage) -> None:
    with pytest.raises(StorageError) as told:
        store.get("a/b c", limit=1)
    assert "a/b c" in str(told.value)
    assert store.url in str(told.value)
