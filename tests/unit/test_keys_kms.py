"""Keys in KMS: moto's for what works, scripted answers for what does not; and that no data key reaches a log."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from guestagent.errors import ConfigError, Corrupt, GuestagentError, StorageDenied, StorageError
from guestagent.keys import KmsSettings
from guestagent.keys.kms import LONGEST, KmsKey
from tests.servers.moto_kms import REGION, kms_settings, make_key
from tests.servers.moto_s3 import moto_s3
from tests.servers.ports import free_ports
from tests.servers.scripted_s3 import SECRET, Reply, ScriptedS3

DATA_KEY = b"a data key of thirty-two bytes!!"
SHOWN = (DATA_KEY.decode(), base64.b64encode(DATA_KEY).decode(), DATA_KEY.hex(), SECRET)
CONTEXT = {"instance_id": "guest1", "backup_id": "b", "purpose": "guestagent data key 1"}
ARN = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_s3() as url:
        yield url


@pytest.fixture(autouse=True)
def _no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever botocore has to say at whichever level."""
    caplog.set_level(logging.DEBUG)
    yield
    text = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    assert not [secret for secret in SHOWN if secret in text]


def answer(status: int = 200, **document: Any) -> Reply:
    return Reply(status=status, body=json.dumps(document).encode(), headers={"Content-Type": "application/x-amz-json"})


def refused(code: str, message: str = "As the test wants it.") -> Reply:
    return answer(400, __type=code, message=message)


def scripted(server: ScriptedS3, url: str = f"kms://{ARN}", **changes: Any) -> KmsKey:
    settings = KmsSettings(
        endpoint_url=server.endpoint_url, access_key_id="AKID", secret_access_key=SECRET, max_attempts=2
    )
    return KmsKey(url, replace(settings, **changes))


def both(key: KmsKey) -> tuple[Callable[[], bytes], Callable[[], bytes]]:
    """What a key is for."""
    return partial(key.wrap, DATA_KEY, CONTEXT), partial(key.unwrap, b"w", CONTEXT)


# -- what works


@pytest.mark.parametrize("named_by", ["arn", "id", "alias", "alias-arn"])
def test_a_wrapped_key_comes_back(endpoint: str, named_by: str) -> None:
    arn = make_key(endpoint, alias=f"by-{named_by}")
    names = {
        "arn": f"kms://{arn}",
        "id": f"kms://{arn.rpartition('/')[2]}?region={REGION}",
        "alias": f"kms://alias/by-{named_by}?region={REGION}",
        "alias-arn": f"kms://{arn.rpartition(':')[0]}:alias/by-{named_by}",
    }
    key = KmsKey(names[named_by], kms_settings(endpoint))

    wrapped = key.wrap(DATA_KEY, CONTEXT)

    assert DATA_KEY not in wrapped
    assert key.id == f"kms:{arn}"
    assert KmsKey(f"kms://{arn}", kms_settings(endpoint)).unwrap(wrapped, CONTEXT) == DATA_KEY


def test_a_key_that_is_named_by_its_arn_is_known_without_asking() -> None:
    with ScriptedS3(answer()) as server:
        assert scripted(server).id == f"kms:{ARN}"
        assert server.asked == []


def test_the_arn_of_an_alias_is_asked_for_once() -> None:
    with ScriptedS3(answer(KeyMetadata={"Arn": ARN})) as server:
        key = scripted(server, "kms://alias/backups?region=eu-west-1")
        assert (key.id, key.id) == (f"kms:{ARN}",) * 2
        assert [json.loads(asked.body) for asked in server.asked] == [{"KeyId": "alias/backups"}]


def test_kms_is_asked_for_this_key_and_this_context_alone() -> None:
    with ScriptedS3(answer(CiphertextBlob=base64.b64encode(b"w").decode()), answer(Plaintext="eA==")) as server:
        key = scripted(server)
        assert (key.wrap(DATA_KEY, CONTEXT), key.unwrap(b"w", CONTEXT)) == (b"w", b"x")
        for asked in server.asked:
            sent = json.loads(asked.body)
            assert (sent["KeyId"], sent["EncryptionContext"]) == (ARN, CONTEXT)
            assert "/eu-west-1/kms/" in asked.headers["authorization"]


def test_the_region_of_the_url_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    with ScriptedS3(answer(KeyMetadata={"Arn": ARN})) as server:
        assert scripted(server, "kms://alias/a?region=eu-west-3").id
        assert scripted(server, "kms://alias/a").id
        regions = [asked.headers["authorization"].split("/")[2] for asked in server.asked]
    assert regions == ["eu-west-3", "us-west-2"]


# -- what does not open


@pytest.mark.parametrize("change", [{"backup_id": "c"}, {"instance_id": "guest2"}, {"more": "x"}])
def test_a_wrapped_key_opens_only_in_its_place(endpoint: str, change: dict[str, str]) -> None:
    key = KmsKey(f"kms://{make_key(endpoint)}", kms_settings(endpoint))
    with pytest.raises(Corrupt, match=r"does not open under it .*; it was changed, or belongs to another"):
        key.unwrap(key.wrap(DATA_KEY, CONTEXT), CONTEXT | change)


@pytest.mark.parametrize("wrapped", [b"", bytes(LONGEST + 1)])
def test_what_kms_would_not_take_is_not_sent(wrapped: bytes) -> None:
    with ScriptedS3(answer()) as server:
        with pytest.raises(Corrupt, match=f"what KMS key {ARN} has to unwrap is {len(wrapped)} bytes long"):
            scripted(server).unwrap(wrapped, CONTEXT)
        assert server.asked == []


def test_a_wrapped_key_of_another_key_is_refused() -> None:
    with ScriptedS3(refused("IncorrectKeyException")) as server, pytest.raises(Corrupt, match="does not open under"):
        scripted(server).unwrap(b"w", CONTEXT)


# -- KMS refuses, or is away


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("AccessDeniedException", StorageDenied, r"access denied \(AccessDeniedException\); let these credentials use"),
        ("UnrecognizedClientException", StorageDenied, "does not know these credentials .*; correct"),
        ("InvalidSignatureException", StorageDenied, "does not know these credentials"),
        ("ExpiredTokenException", StorageDenied, "the credentials have expired .*; renew them"),
        ("NotFoundException", StorageError, r"no such key .*; correct \[encryption\] key"),
        ("DisabledException", StorageError, "the key is disabled .*; enable it"),
        ("KMSInvalidStateException", StorageError, "cannot be used now .*; look at it"),
        ("InvalidKeyUsageException", StorageError, "not one that encrypts"),
        ("SomethingNewException", StorageError, r"As the test wants it\. \(SomethingNewException\)"),
    ],
)
def test_refusals_in_words(code: str, kind: type[GuestagentError], words: str) -> None:
    with ScriptedS3(refused(code)) as server:
        key = scripted(server)
        for act in both(key):
            with pytest.raises(kind, match=f"cannot (un)?wrap a data key with KMS key {ARN}: .*{words}") as caught:
                act()
            assert type(caught.value) is kind
            check_trace(caught.value)


def test_a_refusal_without_words() -> None:
    with ScriptedS3(Reply(status=400)) as server, pytest.raises(StorageError, match=r"refused \(400\)"):
        scripted(server).wrap(DATA_KEY, CONTEXT)


def test_an_alias_that_is_not_there(endpoint: str) -> None:
    key = KmsKey(f"kms://alias/nowhere?region={REGION}", kms_settings(endpoint))
    with pytest.raises(StorageError, match="cannot find KMS key alias/nowhere: KMS has no such key"):
        key.wrap(DATA_KEY, CONTEXT)


def test_overload_is_tried_again_and_told_in_the_end() -> None:
    with ScriptedS3(refused("ThrottlingException")) as server:
        with pytest.raises(StorageError, match=r"KMS is overloaded or down \(ThrottlingException\); try later"):
            scripted(server).wrap(DATA_KEY, CONTEXT)
        assert len(server.asked) == 2


def test_nobody_listens() -> None:
    (port,) = free_ports(1)
    settings = KmsSettings(
        endpoint_url=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key=SECRET, max_attempts=1
    )
    with pytest.raises(StorageError, match=f"cannot wrap a data key with KMS key {ARN}: .*look at the network") as told:
        KmsKey(f"kms://{ARN}", settings).wrap(DATA_KEY, CONTEXT)
    check_trace(told.value)


def test_an_answer_that_never_comes() -> None:
    silent = Reply(body=b"{", headers={"Content-Length": "10"})
    with ScriptedS3(silent) as server, pytest.raises(StorageError, match="look at the network"):
        scripted(server, read_timeout=0.2, max_attempts=1).wrap(DATA_KEY, CONTEXT)


@pytest.mark.parametrize(
    "reply",
    [
        answer(),
        answer(Plaintext=base64.b64encode(DATA_KEY).decode()[:-3], CiphertextBlob="x"),
        Reply(body=DATA_KEY),
        Reply(body=b"[]"),
        Reply(body=b"<html>"),
    ],
)
def test_an_answer_that_nobody_can_read_is_not_repeated(reply: Reply) -> None:
    with ScriptedS3(reply) as server:
        key = scripted(server)
        for act in both(key):
            with pytest.raises(
                StorageError, match=r"an answer that nobody can read .*correct .*kms_endpoint_url"
            ) as told:
                act()
            check_trace(told.value)


def test_what_botocore_stumbles_over_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(**_: Any) -> NoReturn:
        raise AssertionError(DATA_KEY.decode())

    key = KmsKey(f"kms://{ARN}", KmsSettings(access_key_id="a", secret_access_key=SECRET))
    monkeypatch.setattr(key._client, "decrypt", stumble)

    with pytest.raises(StorageError, match=r"an answer that nobody can read \(AssertionError\)") as told:
        key.unwrap(b"w", CONTEXT)
    check_trace(told.value)


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with ScriptedS3(answer()) as server:
        key = scripted(server, access_key_id="", secret_access_key="")
        with pytest.raises(StorageDenied, match=r"no usable credentials \(NoCredentialsError\); set \[encryption\]"):
            key.wrap(DATA_KEY, CONTEXT)
        assert server.asked == []


def check_trace(error: BaseException) -> None:
    """The error and all that it came of show nothing secret."""
    shown = "".join(traceback.format_exception(error)) + repr(error)
    assert not [secret for secret in SHOWN if secret in shown]


# -- settings


@pytest.mark.parametrize(
    "url",
    [
        "kms://",
        "kms:///x",
        "kms://a b",
        "kms://me:s3cret@kms",
        "kms://alias/x?region=",
        "kms://alias/x?region=EU",
        "kms://alias/x&region=eu-west-1",
        "s3://alias/x",
        base64.b64encode(DATA_KEY).decode(),
        "kms://" + "x" * 2049,
    ],
)
def test_what_is_no_url_of_a_key_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        KmsKey(url, KmsSettings())
    assert str(told.value) == (
        "[encryption] names a key by something that is not a kms:// URL; use kms://KEY?region=REGION"
    )


def test_a_region_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"cannot set up KMS: You must specify a region.*; name the region"):
        KmsKey("kms://alias/x", KmsSettings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secret_access_key": ""}, "go together; set both or none"),
        ({"access_key_id": ""}, "go together"),
        ({"secret_access_key": f"{SECRET}\n"}, "unprintable"),
        ({"endpoint_url": f"https://me:{SECRET}@kms"}, "holds credentials"),
        ({"endpoint_url": "nonsense"}, "cannot set up KMS"),
        ({"ca_bundle": "/no/such/file"}, "kms_ca_bundle: no file /no/such/file"),
    ],
)
def test_wrong_settings_are_told(changes: dict[str, Any], words: str) -> None:
    settings = KmsSettings(access_key_id="a", secret_access_key=SECRET)
    with pytest.raises(ConfigError, match=words) as told:
        KmsKey(f"kms://{ARN}", replace(settings, **changes))
    check_trace(told.value)


def test_what_a_key_shows() -> None:
    settings = KmsSettings(access_key_id="a", secret_access_key=SECRET)
    key = KmsKey(f"kms://{ARN}", settings)
    assert repr(key) == f"KmsKey('{ARN}')"
    assert SECRET not in repr(settings)


def test_botocore_is_heard_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedS3(refused("DisabledException")) as server:
        with pytest.raises(StorageError):
            scripted(server).wrap(DATA_KEY, CONTEXT)
        logging.getLogger("botocore.endpoint").debug("heard again")
    said = [record.message for record in caplog.records if record.name == "botocore.endpoint"]
    assert said[-1] == "heard again"
    assert not [message for message in said if "request" in message]
