"""Which driver a URL opens, and what is no store's URL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guestagent.errors import ConfigError
from guestagent.storage import S3Settings, open_storage
from guestagent.storage.file import FileStorage
from guestagent.storage.s3 import S3Storage

SETTINGS = S3Settings(region_name="us-east-1", access_key_id="a", secret_access_key="b")


@pytest.mark.parametrize("url", ["file:///srv/backups", "file:///srv/backups/", "file:///srv/backups///"])
def test_a_file_url_opens_files(url: str) -> None:
    store = open_storage(url)
    assert isinstance(store, FileStorage)
    assert store.url == "file:///srv/backups"


def test_a_file_url_may_hold_escapes(tmp_path: Path) -> None:
    store = open_storage((tmp_path / "100% ü").as_uri())
    store.put("key", b"1")
    assert (tmp_path / "100% ü" / "key").exists()
    assert store.url == (tmp_path / "100% ü").as_uri()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/pre fix/deep/", "s3://bucket/pre fix/deep"),
        ("s3://A_bucket.of-old", "s3://A_bucket.of-old"),
    ],
)
def test_an_s3_url_opens_a_bucket(url: str, told: str) -> None:
    store = open_storage(url, s3=SETTINGS)
    assert isinstance(store, S3Storage)
    assert store.url == told
    store.close()


def test_an_s3_url_needs_no_settings_to_open() -> None:
    assert open_storage("s3://bucket").url == "s3://bucket"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/backups",
        "backups",
        "swift://bucket",
        "S3://bucket",
        "s3:bucket",
        "file:/srv",
        "file://",
        "file:///",
        "file://srv/backups",
        "file://localhost/srv",
        "file:///a\0b",
        "file:///a%00b",
        "s3://",
        "s3:///prefix",
        "s3://buc ket",
        "s3://bucket?x",
        "s3://bucket//prefix",
        "s3://bucket/../prefix",
        "s3://bucket/a\nb",
    ],
)
def test_what_is_no_stores_url_is_told_with_a_hint(url: str) -> None:
    with pytest.raises(ConfigError, match=r"file:///|s3://") as told:
        open_storage(url, s3=SETTINGS)
    assert told.value.hint


@pytest.mark.parametrize("scheme", ["s3", "file", "https"])
def test_credentials_in_a_url_are_not_repeated(scheme: str) -> None:
    with pytest.raises(ConfigError) as told:
        open_storage(f"{scheme}://me:hush/hush@bucket/prefix")
    assert "hush" not in str(told.value)


def test_boto3_is_loaded_for_s3_alone(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from guestagent.storage import S3Settings, open_storage\n"
        f"open_storage({tmp_path.as_uri()!r}, s3=S3Settings()).put('key', b'1')\n"
        "assert 'boto3' not in sys.modules and 'botocore' not in sys.modules\n"
        "open_storage('s3://bucket')\n"
        "assert 'boto3' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], check=True, timeout=60)
