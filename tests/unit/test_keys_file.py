"""Key files: what is made, what is refused, what a wrapped key is bound to; and that no key is ever shown."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
import stat
import traceback
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guestagent.errors import ConfigError, Corrupt, GuestagentError, Refused
from guestagent.keys.file import FileKey, generate

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY)
DATA_KEY = b"a data key of thirty-two bytes!!"
CONTEXT = {"instance_id": "guest1", "backup_id": "b", "purpose": "guestagent data key 1"}


def written(path: Path, content: bytes = TEXT + b"\n", *, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "key")


def hkdf(key: bytes, purpose: bytes, size: int) -> bytes:
    """RFC 5869 by hand, without salt, for up to 32 bytes."""
    extracted = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(extracted, purpose + b"\x01", hashlib.sha256)[:size]


def refusal(path: Path) -> str:
    """The error for a file, after a look that neither it nor its traceback shows what the file holds."""
    with pytest.raises(ConfigError) as caught:
        FileKey(path)
    shown = "".join(traceback.format_exception(caught.value))
    assert TEXT.decode() not in shown
    assert TEXT.decode()[:20] not in shown
    return str(caught.value)


# -- making


def test_a_new_key_is_32_random_bytes_for_one_users_eyes(tmp_path: Path) -> None:
    ids = {generate(tmp_path / name) for name in ("one", "two")}

    for name in ("one", "two"):
        text = (tmp_path / name).read_bytes()
        assert text.endswith(b"=\n")
        assert len(base64.b64decode(text, validate=False)) == 32
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert ids == {FileKey(tmp_path / "one").id, FileKey(tmp_path / "two").id}
    assert len(ids) == 2


def test_a_new_key_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o377)
    try:
        generate(tmp_path / "key")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("link", [False, True])
def test_what_is_there_is_never_replaced(tmp_path: Path, path: Path, link: bool) -> None:
    target = path
    if link:
        target = tmp_path / "link"
        target.symlink_to("nowhere")

    with pytest.raises(Refused, match="is there already; give another name"):
        generate(target)

    assert path.read_bytes() == TEXT + b"\n"
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GuestagentError, match=r"cannot write key file .*/absent/key: No such file.*; name a place"):
        generate(tmp_path / "absent" / "key")


def test_a_disk_that_fails_leaves_no_half_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(GuestagentError, match=r"cannot write key file .*: No space left on device"):
        generate(tmp_path / "key")

    assert list(tmp_path.iterdir()) == []


def test_a_new_key_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))

    generate(tmp_path / "key")

    assert synced == [str(tmp_path / "key"), str(tmp_path)]


# -- reading


@pytest.mark.parametrize("content", [TEXT, TEXT + b"\n", TEXT + b"\r\n", b"  " + TEXT + b" \n\n"])
def test_blanks_around_a_key_do_not_matter(tmp_path: Path, path: Path, content: bytes) -> None:
    assert FileKey(written(tmp_path / "other", content)).id == FileKey(path).id


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        base64.b64encode(KEY[:31]),
        base64.b64encode(KEY + b"x"),
        TEXT[:-1],
        TEXT[:20] + b"\n" + TEXT[20:],
        TEXT + b"\n" + TEXT,
        base64.urlsafe_b64encode(b"\xff" * 32),
        KEY,
        KEY.hex().encode(),
        b"\xef\xbb\xbf" + TEXT,
        "schlüssel".encode() * 6,
        TEXT * 1000,
    ],
)
def test_a_file_that_holds_no_whole_key(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "key", content)

    assert refusal(path) == (
        f"key file {path} does not hold 32 bytes in Base64, in one line; `guestagent key generate` makes one"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o660])
def test_a_file_that_is_open_to_others(path: Path, mode: int) -> None:
    path.chmod(mode)

    assert refusal(path) == (
        f"key file {path} is open to other users (mode {mode:04o}); chmod 600 {path}, and make a new key if somebody "
        "may have read it"
    )


@pytest.mark.parametrize(
    ("owner", "reader", "taken"),
    [(1000, 1000, True), (0, 1000, True), (1001, 1000, False), (1000, 0, True), (0, 0, True)],
)
def test_whose_file_it_may_be(
    path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, reader: int, taken: bool
) -> None:
    real = os.fstat

    def theirs(handle: int) -> os.stat_result:
        fields = list(real(handle))
        fields[stat.ST_UID] = owner
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", theirs)
    monkeypatch.setattr(os, "geteuid", lambda: reader)

    if taken:
        assert FileKey(path).id
    else:
        assert refusal(path) == f"key file {path} belongs to another user; chown it to uid {reader}"


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path, path: Path) -> None:
    (tmp_path / "link").symlink_to("key")
    assert FileKey(tmp_path / "link").id == FileKey(path).id

    path.chmod(0o644)

    assert "link is open to other users" in refusal(tmp_path / "link")


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert "cannot read key file" in refusal(tmp_path / "socket")

    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert "cannot read key file" in refusal(tmp_path / "directory")
    assert refusal(tmp_path / "absent") == (
        f"cannot read key file {tmp_path}/absent: No such file or directory; correct the path, or run as the user "
        "that owns the file"
    )


@pytest.mark.parametrize("place", [TEXT.decode(), "/" + TEXT.decode()[1:], "here.key", "~/my.key"])
def test_a_key_in_the_place_of_its_path_is_not_repeated(place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FileKey(Path(place))

    assert str(caught.value).endswith("not an absolute path; give the path of the file, not the key in it")
    assert place not in "".join(traceback.format_exception(caught.value))


# -- using


def test_what_a_key_shows(path: Path) -> None:
    key = FileKey(path)

    assert key.id == f"file:{hkdf(KEY, b'guestagent key id 1', 8).hex()}"
    assert repr(key) == f"FileKey('{key.id}')"
    shown = repr(vars(key)) + repr(vars(key._envelope))
    for secret in (KEY, hkdf(KEY, b"guestagent wrap 1", 32)):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
        assert base64.b64encode(secret).decode() not in shown


def test_a_stranger_unwraps_by_the_description_alone(path: Path) -> None:
    wrapped = FileKey(path).wrap(DATA_KEY, CONTEXT)

    bound = b'{"backup_id":"b","instance_id":"guest1","purpose":"guestagent data key 1"}'
    assert json.loads(bound) == CONTEXT
    cipher = AESGCM(hkdf(KEY, b"guestagent wrap 1", 32))
    assert cipher.decrypt(wrapped[:12], wrapped[12:], bound) == DATA_KEY
    assert len(wrapped) == 12 + 32 + 16


def test_a_wrapped_key_comes_back(path: Path) -> None:
    key = FileKey(path)
    once, again = key.wrap(DATA_KEY, CONTEXT), key.wrap(DATA_KEY, CONTEXT)

    assert once != again
    assert DATA_KEY not in once
    assert FileKey(path).unwrap(once, dict(reversed(CONTEXT.items()))) == DATA_KEY
    assert key.unwrap(again, CONTEXT) == DATA_KEY


def not_opened(key: FileKey, wrapped: bytes, context: dict[str, str]) -> None:
    with pytest.raises(
        Corrupt, match=f"a wrapped data key does not open under key {key.id}; it was changed, or belongs to another"
    ):
        key.unwrap(wrapped, context)


@pytest.mark.parametrize("change", [{"backup_id": "c"}, {"instance_id": "guest2"}, {"purpose": ""}, {"more": "x"}])
def test_a_wrapped_key_opens_only_in_its_place(path: Path, change: dict[str, str]) -> None:
    key = FileKey(path)
    not_opened(key, key.wrap(DATA_KEY, CONTEXT), CONTEXT | change)


def test_a_wrapped_key_does_not_open_when_any_byte_is_changed_or_missing(path: Path) -> None:
    key = FileKey(path)
    wrapped = key.wrap(DATA_KEY, CONTEXT)

    for place in range(len(wrapped)):
        not_opened(key, wrapped[:place] + bytes([wrapped[place] ^ 1]) + wrapped[place + 1 :], CONTEXT)
        not_opened(key, wrapped[:place], CONTEXT)
    not_opened(key, wrapped + b"\0", CONTEXT)


def test_a_wrapped_key_does_not_open_under_another_key(tmp_path: Path, path: Path) -> None:
    generate(tmp_path / "other")
    not_opened(FileKey(tmp_path / "other"), FileKey(path).wrap(DATA_KEY, CONTEXT), CONTEXT)
