"""Which keys are at hand: nothing is read before it is needed, and nothing is taken on a backup's word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.errors import ConfigError
from guestagent.keys import KeyRing, KeySettings, KmsSettings, open_keys
from guestagent.keys.file import generate
from tests.servers.moto_kms import REGION, kms_settings, make_key
from tests.servers.moto_s3 import moto_s3

ELSEWHERE = "kms:arn:aws:kms:eu-west-1:111122223333:key/of-somebody-else"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_s3() as url:
        yield url


@pytest.fixture
def ids(tmp_path: Path) -> dict[str, str]:
    """Three key files, by name."""
    return {name: generate(tmp_path / name) for name in ("one", "two", "three")}


def ring_of(directory: Path, *names: str, current: bool = True) -> KeyRing:
    paths = [directory / name for name in names]
    return open_keys(KeySettings(key_file=paths.pop(0) if current else None, old_key_files=tuple(paths)))


def test_without_settings_there_is_no_key() -> None:
    for ring in (KeyRing(), open_keys(KeySettings())):
        assert ring.current is None
        assert ring.old == ()
        assert ring.find("file:0123456789abcdef") is None


def test_the_key_of_new_backups_and_those_of_old_ones(tmp_path: Path, ids: dict[str, str]) -> None:
    ring = ring_of(tmp_path, "one", "two", "three")

    assert ring.current is not None
    assert ring.current.id == ids["one"]
    assert [key.id for key in ring.old] == [ids["two"], ids["three"]]
    assert all(ring.named(key_id).id == key_id for key_id in ids.values())
    assert ring.current is ring.named(ids["one"])


def test_a_host_that_only_restores_has_old_keys_alone(tmp_path: Path, ids: dict[str, str]) -> None:
    ring = ring_of(tmp_path, "one", current=False)

    assert ring.current is None
    assert ring.named(ids["one"]).id == ids["one"]
    assert [key.id for key in ring.old] == [ids["one"]]


@pytest.mark.parametrize(
    ("key_id", "option"), [("file:0123456789abcdef", "old_key_files"), (ELSEWHERE, "old_keys"), ("", "old_key_files")]
)
def test_a_key_that_is_not_here_is_named(tmp_path: Path, ids: dict[str, str], key_id: str, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ring_of(tmp_path, "one").named(key_id)

    assert str(caught.value) == f"no key {key_id} here; name it in [encryption] {option}"


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "absent")

    with pytest.raises(ConfigError, match=r"cannot read key file .*/absent"):
        _ = ring.current
    with pytest.raises(ConfigError, match=r"cannot read key file .*/absent"):
        ring.find(ELSEWHERE)


def test_two_keys_for_new_backups_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key_file and key are both set; keep the one for new backups"):
        open_keys(KeySettings(key_file=tmp_path / "one", kms="kms://alias/x"))


def test_keys_in_kms_beside_those_in_files(tmp_path: Path, endpoint: str, ids: dict[str, str]) -> None:
    new, old = make_key(endpoint, alias="new"), make_key(endpoint, alias="old")
    settings = KeySettings(
        old_key_files=(tmp_path / "one",),
        kms=f"kms://alias/new?region={REGION}",
        old_kms=(f"kms://{old}",),
        access=kms_settings(endpoint),
    )
    ring = open_keys(settings)

    assert ring.current is not None
    assert ring.current.id == f"kms:{new}"
    assert [key.id for key in ring.old] == [ids["one"], f"kms:{old}"]
    assert ring.named(f"kms:{new}") is ring.current
    assert ring.named(ids["one"]).id == ids["one"]
    assert ring.find(ELSEWHERE) is None
    assert "only-for-tests" not in repr(settings)
    assert "kms://" not in repr(settings)


def test_a_file_is_found_while_kms_is_away(tmp_path: Path, ids: dict[str, str]) -> None:
    away = KmsSettings("http://127.0.0.1:9", "a", "b", max_attempts=1)
    ring = open_keys(KeySettings(old_key_files=(tmp_path / "one",), kms=f"kms://alias/x?region={REGION}", access=away))

    assert ring.named(ids["one"]).id == ids["one"]


def test_what_is_not_needed_is_not_imported() -> None:
    program = (
        "import sys; from pathlib import Path; from guestagent.keys import *; "
        "ring = open_keys(KeySettings(key_file=Path('/absent'))); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert not {"boto3", "botocore", "cryptography"} & set(done.stdout.split())
    assert "guestagent" in done.stdout
