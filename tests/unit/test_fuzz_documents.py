"""JSON as a stranger would write it, for every reader that we have: an error of ours in one line, and soon."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guestagent import document
from guestagent.errors import Corrupt, GuestagentError
from guestagent.manifest import sealed
from tests.hostile import JSON, READERS, cheap, judged, samples

SAMPLES = samples()
DEEP = 200_000
LONG = 3 << 20

NO_DOCUMENTS = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'"\\ud800"',
    b"NaN",
    b'{"format":NaN}',
    b'{"format":1,"format":1}',
    b'{"format":1e999}',
    b'{"format":1.0}',
    b'{"format":true}',
    b'{"format":-1}',
    b'{"format":"1"}',
    b'{"format":' + b"9" * 5000 + b"}",
    "{}".encode("utf-16"),
    b"\xef\xbb\xbf{}",
    b"[" * DEEP,
    b'{"format":' * DEEP,
    b'{"format":1,"x":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"format":1,"x":[' + b"[]," * LONG + b"0]}",
    b'{"format":1,"x":"' + b"x" * LONG + b'"}',
]
"""What no reader takes."""

STRANGE: list[Any] = [
    None, True, -1, 0, 2**63, 2**64, 10**30, 10**400, 1.5, 1e300, "", "0", "x" * 100_000, "\x1b[31m", "a\nb",
    "\0", "\ud800", "\u202eabc", "/etc/passwd", "../../x", "a/../b", "//", "file:///", "ü" * 300, [], [[]], {},
    [None], [1, 2], {"a": {}}, ["x"] * 1000, "9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "1" * 10_000,
]  # fmt: skip
"""What may stand where something else belongs."""

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from(STRANGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=sorted(JSON))
def reader(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_reader_takes_its_sample(reader: str) -> None:
    found = judged(JSON[reader], SAMPLES[reader])
    assert found is not None
    assert not isinstance(found, Exception), found


@pytest.mark.parametrize("data", NO_DOCUMENTS, ids=lambda data: repr(data[:24]))
def test_what_is_no_document_is_refused_before_it_costs_much(reader: str, data: bytes) -> None:
    if reader in ("letter", "stamps"):  # they begin anew, and put aside what they cannot read
        with cheap(mebibytes=64, seconds=20):
            assert not isinstance(judged(JSON[reader], data), str)
        return
    with cheap(mebibytes=64, seconds=20):
        assert isinstance(judged(JSON[reader], data), GuestagentError)


def test_every_value_may_be_another(reader: str) -> None:
    sample = json.loads(SAMPLES[reader])
    for path in list(_paths(sample)):
        for value in STRANGE:
            judged(JSON[reader], _with(sample, path, value))
            if reader == "manifest" and path != ("digest",):  # one whose digest fits
                judged(JSON[reader], _resealed(sample, path, value))


@settings(max_examples=40, deadline=None)
@given(values=st.dictionaries(st.text(max_size=8), VALUES, max_size=3), spot=st.integers(min_value=0))
def test_any_value_anywhere(values: dict[str, Any], spot: int) -> None:
    for name, reader in JSON.items():
        sample = json.loads(SAMPLES[name])
        paths = list(_paths(sample))
        for value in values.values():
            judged(reader, _with(sample, paths[spot % len(paths)], value))
        judged(reader, json.dumps({**sample, **values}).encode("utf-8", "surrogatepass"))


@settings(max_examples=40, deadline=None)
@given(junk=st.binary(max_size=64), spot=st.integers(min_value=0), width=st.integers(0, 40))
@example(junk=b"", spot=0, width=1)
def test_any_damage(junk: bytes, spot: int, width: int) -> None:
    for name, reader in JSON.items():
        sample = SAMPLES[name]
        at = spot % (len(sample) + 1)
        judged(reader, sample[:at] + junk + sample[at + width :])
        judged(reader, junk)


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_what_is_read_is_what_was_written(value: Any) -> None:
    data = json.dumps(value).encode("utf-8", "surrogatepass")
    try:
        assert document.parsed(data, most=len(data)) == value
    except ValueError as error:
        told = str(error)
        assert len(told) < 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b"[" * DEEP, "nested too deeply"),
        (b"[" + b"0," * document.MOST_VALUES + b"0]", "more than 524288 values"),
        (b'{"a":1,"a":1}', "an object has a key twice"),
        (b"-Infinity", "-Infinity is no number"),
        (b"-1e999", "a number out of range"),
        (b"1" * 25, "a number of 25 digits"),
        (b"\xff", "not UTF-8 text"),
        (b"0" * 9, "more than 8 bytes"),
    ],
)
def test_a_document_is_refused_with_a_reason(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        document.parsed(data, most=8 if len(data) == 9 and data[:1] == b"0" else len(data))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=40), length=st.sampled_from([0, 1, 30, 1 << 24, (1 << 24) + 1, (1 << 32) - 1]))
def test_any_frame(data: bytes, length: int) -> None:
    judged(READERS["frames"], data)
    judged(READERS["frames"], b"\x01" + length.to_bytes(4, "big") + data)
    judged(READERS["frames"], b"\x01\0\0\0\2{}" + data)


@pytest.mark.parametrize("monitor", ["1e999", "NaN", "-1", "86401", "9" * 30, '"1"', "[]", "1e300"])
def test_a_client_that_waits_for_a_sign_for_ever_is_cut_off(monitor: str) -> None:
    data = SAMPLES["frame"].replace(b'"monitor": 30', f'"monitor": {monitor}'.encode())
    assert isinstance(judged(JSON["frame"], data), Corrupt)


def test_a_document_of_the_deepest_kind_is_read() -> None:
    data = b"[" * 64 + b"]" * 64
    assert json.dumps(document.parsed(data, most=128)) == data.decode()


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Any:
    if above:
        yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _paths(one, (*above, key))


def _resealed(sample: Any, path: tuple[Any, ...], value: Any) -> bytes:
    try:
        return sealed(json.loads(_with(sample, path, value)))
    except GuestagentError:
        return b""


def _with(sample: Any, path: tuple[Any, ...], value: Any) -> bytes:
    """The sample with another value in one place."""
    copy = json.loads(json.dumps(sample))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(copy).encode("utf-8", "surrogatepass")
