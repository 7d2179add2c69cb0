"""Trove's encryption: its very form, and nothing else is taken for it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from guestagent.errors import Refused
from guestagent.rpc.secure import Box, ConductorSerializer, GuestSerializer

KEY = "a-key"
KNOWN = [
    # Made by `openssl enc -aes-256-cbc` with the MD5 of the key in hexadecimal and a counting IV.
    ({"id": 1}, "AAECAwQFBgcICQoLDA0OD69S/7eA2snISNHwTYogsYc="),
    ("0123456789abcd", "AAECAwQFBgcICQoLDA0OD4UB/ZHV2jY6U3NdcQGvTgXlVbBt5VHHeQFe/xAWdZ7d"),
]
VALUES: list[Any] = [None, True, 0, 1.5, "", "ünïcode", [], {}, {"a": [{"b": None}]}, "x" * 100_000]


@pytest.mark.parametrize(("value", "sealed"), KNOWN)
def test_what_another_program_encrypted_is_understood(value: Any, sealed: str) -> None:
    assert Box(KEY).open(sealed) == value


@pytest.mark.parametrize(("value", "sealed"), KNOWN)
def test_the_same_iv_makes_the_same_text(value: Any, sealed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestagent.rpc.secure.os.urandom", lambda count: bytes(range(count)))
    assert Box(KEY).seal(value) == sealed


@pytest.mark.parametrize("value", VALUES)
def test_there_and_back(value: Any) -> None:
    assert Box(KEY).open(Box(KEY).seal(value)) == value


def test_no_text_is_made_twice() -> None:
    assert Box(KEY).seal("x") != Box(KEY).seal("x")


def damaged() -> list[Any]:
    """Everything that is no encrypted value."""
    good = base64.b64decode(KNOWN[0][1])
    odd = [good[:16], good[:-1], good + b"x", b"", good[:8], bytes(32), good[:16] + bytes(16), bytes(48)]
    return [
        None, 5, [], {}, "plain", "ünïcode", KNOWN[0][1] + "\n", KNOWN[0][1][:-1], f" {KNOWN[0][1]}", {"id": 1},
        *(base64.b64encode(data).decode() for data in odd),
    ]  # fmt: skip


@pytest.mark.parametrize("value", damaged())
def test_what_does_not_decrypt_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        Box(KEY).open(value)
    assert caught.value.what == "a message that does not decrypt"
    assert "instance_rpc_encr_key" in caught.value.hint


def test_another_key_does_not_decrypt() -> None:
    for value in VALUES:
        with pytest.raises(Refused):
            Box("another").open(Box(KEY).seal(value))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"no json", b"\xff\xfe", b"", b"1" * 5000])
def test_what_is_encrypted_and_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(Refused, match="does not decrypt"):
        Box(KEY).open(sealed(text))


def sealed(text: bytes) -> str:
    """Any bytes in the form of an encrypted value."""
    key, count = hashlib.md5(KEY.encode()).hexdigest().encode(), 16 - len(text) % 16
    encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
    return base64.b64encode(bytes(16) + encryptor.update(text + bytes([count]) * count)).decode()


def test_a_guests_messages() -> None:
    one, other = GuestSerializer(KEY), GuestSerializer(KEY)
    context = one.serialize_context({"auth_token": "t"})
    assert list(context) == ["context"]
    assert other.deserialize_context(context) == {"auth_token": "t"}
    assert other.deserialize_entity({}, one.serialize_entity({}, {"id": "ä"})) == {"id": "ä"}
    with pytest.raises(Refused, match="not encrypted, and instance_rpc_encr_key is set"):
        other.deserialize_context({"auth_token": "t"})


def test_messages_to_the_conductor_say_whose_key_it_is() -> None:
    serializer = ConductorSerializer(KEY, instance="guest1")
    entity = json.loads(serializer.serialize_entity({}, 1.5))
    assert (entity["csz-instance-id"], Box(KEY).open(entity["entity"])) == ("guest1", 1.5)
    context = serializer.serialize_context({"user": "u"})
    assert (context["csz-instance-id"], Box(KEY).open(context["context"])) == ("guest1", {"user": "u"})
    assert serializer.deserialize_context({}) == {}
    assert serializer.deserialize_entity({}, "as it is") == "as it is"
