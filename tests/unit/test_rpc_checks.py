"""What a caller may send: every wrong argument is an error that names it, in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import GuestagentError, Refused, UsageError, one_line
from guestagent.jobs.record import Job
from guestagent.jobs.record import Kind as JobKind
from guestagent.rpc import places
from guestagent.rpc.checks import Arguments, is_id, shown
from guestagent.rpc.ours import Ours
from guestagent.rpc.trove import Trove
from tests.fakes.backups import number
from tests.fakes.rpc import PASSWORD, Agent

ODD_IDS = [
    "",
    "x",
    "../x",
    "../../../../../../../../../../etc/pwd",
    str(number(1)).upper().replace("0", "A"),
    "{" + str(number(1)) + "}",
    f"urn:uuid:{number(1)}",
    str(number(1)).replace("-", ""),
    f"{number(1)}\0",
    f"{number(1)}\n",
    f" {number(1)}",
    str(number(1)).replace("1", "\u0661"),
    f"{str(number(1))[:-1]}/",
    str(number(1)) * 1000,
]
NOT_TEXT: list[Any] = [None, 1, 1.5, True, [], ["a"], {}, {"a": "b"}]


def given(**arguments: Any) -> Arguments:
    return Arguments("create", arguments)


def refused(act: Callable[[], object], *, kind: type[GuestagentError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return caught.value.what


@pytest.mark.parametrize("value", NOT_TEXT)
def test_text_is_text(value: Any) -> None:
    assert "create: name must be text, not " in refused(lambda: given(name=value).text("name", limit=9))


@pytest.mark.parametrize("value", ["a\nb", "a\0", "\x1b[31m", "\ud800", "\u2028", "\x85"])
def test_text_is_one_line_that_can_be_printed(value: str) -> None:
    assert "name holds a line break" in refused(lambda: given(name=value).text("name", limit=9))


def test_text_is_bounded_and_never_shown() -> None:
    told = refused(lambda: given(name=PASSWORD * 400_000).text("name", limit=255))
    assert told == "create: name has 11200000 characters, where at most 255 are allowed"
    assert given(name="ä" * 255).text("name", limit=255) == "ä" * 255


def test_text_may_be_folded_into_one_line() -> None:
    assert given(name=" a\r\n\tb ").text("name", limit=9, folded=True) == "a b"
    assert "control" in refused(lambda: given(name="\x07").text("name", limit=9, folded=True))


def test_what_is_missing_is_named() -> None:
    assert refused(lambda: given().text("name", limit=9)) == "create: name is missing"
    assert refused(lambda: given().id("backup_id")) == "create: backup_id is missing"
    assert refused(lambda: given().inner("backup_info")) == "create: backup_info is missing"
    assert given().text("name", limit=9, default="") == ""
    assert given().maybe_text("name", limit=9) is None
    assert given(name="").maybe_text("name", limit=9) is None
    assert given(name="x").maybe_text("name", limit=9) == "x"


@pytest.mark.parametrize("value", [0, 1, "true", None, "", []])
def test_a_flag_is_true_or_false(value: Any) -> None:
    assert "all must be true or false, not" in refused(lambda: given(all=value).flag("all", default=False))


def test_a_flag_may_be_left_open() -> None:
    assert [given(start=value).maybe_flag("start") for value in (True, False, None)] == [True, False, None]
    assert "start must be" in refused(lambda: given(start=0).maybe_flag("start"))


@pytest.mark.parametrize("value", [10**30, -1, 0, 1001])
def test_a_number_is_within_bounds(value: int) -> None:
    assert refused(lambda: given(limit=value).number("limit", least=1, most=1000, default=50)) == (
        "create: limit must be 1 to 1000"
    )


@pytest.mark.parametrize("value", ["5", 5.0, True, None, float("nan")])
def test_a_number_is_whole(value: Any) -> None:
    assert "a whole number" in refused(lambda: given(limit=value).number("limit", least=1, most=9, default=5))


@pytest.mark.parametrize("value", ODD_IDS)
def test_an_id_is_a_canonical_uuid(value: str) -> None:
    assert not is_id(value)
    told = refused(lambda: given(id=value).id("id"))
    assert told.startswith("create: id must be a UUID in lower case with dashes, not '")


@pytest.mark.parametrize("value", [None, 7, ["x"], {}])
def test_an_id_is_text(value: Any) -> None:
    assert "id must be a UUID, not" in refused(lambda: given(id=value).id("id"))


def test_an_id_may_be_left_out_or_be_a_word() -> None:
    assert given(id=str(number(1))).maybe_id("id") == number(1)
    assert given(id=None).maybe_id("id") is None
    assert given(id="latest").maybe_id("id", or_word="latest") == "latest"
    assert given().maybe_id("id", or_word="latest") is None
    refused(lambda: given(id="latest").maybe_id("id"))


@pytest.mark.parametrize(
    "value",
    ["", "tomorrow", "2026-11-22", "2026-11-22T18:00:00", "2026-11-22T18:00:00+00:00", "2026-13-22T18:00:00Z",
     "2026-11-22 18:00:00Z", "\u0662026-11-22T18:00:00Z", "2026-11-22T18:00:00Z\n", 1795370400, True, []],
)  # fmt: skip
def test_a_deadline_is_a_time_in_utc(value: Any) -> None:
    assert "deadline must be a time such as 2026-11-22T18:00:00Z" in refused(
        lambda: given(deadline=value).moment("deadline")
    )


def test_a_deadline_may_have_a_fraction_and_may_be_left_out() -> None:
    assert given(deadline="2026-11-22T18:00:00.5Z").moment("deadline") == datetime(
        2026, 11, 22, 18, 0, 0, 500000, tzinfo=UTC
    )
    assert given(deadline=None).moment("deadline") is None


@pytest.mark.parametrize("value", ["AB" * 32, "ab" * 15, "ab" * 33, "zz" * 32, "ab" * 32 + "\n", "0x" + "a" * 62])
def test_a_checksum_is_a_sha256(value: str) -> None:
    assert "checksum" in refused(lambda: given(checksum=value).digest("checksum"))


def test_a_checksum_may_be_left_out() -> None:
    assert [given(checksum=value).digest("checksum") for value in (None, "", "ab" * 32)] == [None, None, "ab" * 32]


def test_tables_are_looked_into() -> None:
    outer = given(backup_info={"parent": {"location": 5}}, none=None, empty={})
    assert outer.maybe_inner("none") is outer.maybe_inner("empty") is None
    inner = outer.maybe_inner("backup_info")
    assert inner is not None
    told = refused(lambda: inner.inner("parent").text("location", limit=9))
    assert told == "create: backup_info.parent.location must be text, not int"
    for odd in ("text", ["a"], 5, True):
        assert "backup_info must be a table" in refused(lambda odd=odd: given(backup_info=odd).inner("backup_info"))  # type: ignore[misc]


def test_what_nobody_asked_for_is_refused_by_name() -> None:
    strange = given(name="a", **{"b\n": PASSWORD, "a" * 1000: 1, "c": 2, "d": 3})
    strange.text("name", limit=9)
    with pytest.raises(UsageError) as caught:
        strange.end()
    assert caught.value.what == f"create knows no argument '{'a' * 60}'..., 'b\\n', 'c' and 1 more"
    assert caught.value.hint == "it takes name"
    assert PASSWORD not in str(caught.value)
    with pytest.raises(UsageError, match="it takes none"):
        given(a=1).end()


def test_others_are_those_that_hold_something() -> None:
    asked = given(name="a", users=[{"password": PASSWORD}], overrides=None, packages=[], ds_version="1", zone="z")
    asked.text("name", limit=9)
    assert asked.others(but="ds_version") == ["'users'", "'zone'"]
    assert asked.holds("users")
    assert not asked.holds("packages")


def test_deep_and_huge_values_do_no_harm() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert "name must be text, not list" in refused(lambda: given(name=deep).text("name", limit=9))
    huge = given(**{f"argument {count}": 1 for count in range(10000)})
    assert "and 9997 more" in refused(huge.end)


def test_a_message_is_made_one_line() -> None:
    assert one_line("a\r\nb\u2028c\0d\x1b") == "a  b c d "
    assert len(one_line("x" * 10_000)) < 2100
    assert shown("ä\n") == r"'\xe4\n'"


# Places


def source(agent: Agent, value: Any) -> str:
    return places.source(Arguments("restore", {"source": value}), "source", agent.host())


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def test_a_source_is_an_id_or_a_location_in_the_store(agent: Agent) -> None:
    for good in (str(number(1)), f"{agent.url}/guest1/{number(1)}", f"{agent.url}/another/{number(1)}"):
        assert source(agent, good) == good


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/guest1/{id}",
        "file://{store}/../guest1/{id}",
        "file://{store}/../store/guest1/{id}",
        "file://{store}/sub/guest1/{id}",
        "file://{store}//guest1/{id}",
        "file://{store}/%2e%2e/guest1/{id}",
        "file://localhost{store}/guest1/{id}",
        "s3://bucket/guest1/{id}",
        "http://host/v1/backups/{id}",
        "FILE://{store}/guest1/{id}",
        "swift+https://x/guest1/{id}",
    ],
)
def test_a_location_elsewhere_is_refused(agent: Agent, location: str) -> None:
    text = location.format(store=agent.store, id=number(1))
    assert refused(lambda: source(agent, text), kind=Refused).startswith("source '")


@pytest.mark.parametrize(
    "location",
    [
        "file://{store}/guest1/{id}/",
        "file://{store}/guest1/../{id}",
        "file://{store}/../{id}",
        "file://{store}/guest1/{ID}",
        "file://{store}/guest1/..",
        "file://{store}/gu\0st/{id}",
        "file://{store}/guest1/{id}?x",
        "://",
        "file://",
        "file://x",
        "x" * 1501,
        "\u202e://",
    ],
)
def test_what_is_no_location_is_refused(agent: Agent, location: str) -> None:
    odd = location.format(
        store=agent.store, id="abcdefab-0000-4000-8000-000000000001", ID="ABCDEFAB-0000-4000-8000-000000000001"
    )
    assert "source" in refused(lambda: source(agent, odd))


@pytest.mark.parametrize(
    "rest", ["", "b\0", "..", "bucket/../x", "bucket/./x", "bucket//x", "bu@cket", "key:secret@b", "b" * 256]
)
def test_an_odd_bucket_is_refused(agent: Agent, rest: str) -> None:
    agent.url = "s3://bucket/prefix"
    assert "source" in refused(lambda: source(agent, f"s3://{rest}/guest1/{number(1)}"))


def test_a_location_may_be_in_another_bucket_and_a_parent_may_not(agent: Agent) -> None:
    agent.url = "s3://bucket/prefix"
    other, own = f"s3://other/guest1/{number(1)}", f"s3://bucket/prefix/guest9/{number(1)}"
    assert source(agent, other) == other
    parent = Arguments("create_backup", {"location": other, "own": own}, above="backup_info.parent.")
    assert places.own_backup(parent, "own", agent.host()) == number(1)
    assert "another store than s3://bucket/prefix" in refused(
        lambda: places.own_backup(parent, "location", agent.host()), kind=Refused
    )


def test_a_source_is_text(agent: Agent) -> None:
    for odd in (None, 5, ["x"], {"a": 1}):
        assert "source must be text" in refused(lambda odd=odd: source(agent, odd))  # type: ignore[misc]
    assert json.dumps(shown(PASSWORD * 10)).count("horse") == 2


# The contract on paper


def test_the_examples_of_the_contract_are_json_and_true() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rpc.rst").read_text()
    blocks = re.findall(r"\.\. code-block:: json\n\n((?:   .*\n|\n)+)", text)
    examples = [json.loads(block) for block in blocks]
    job = Job("x", JobKind.BACKUP, {}, datetime.now(UTC), "rpc")
    assert [list(example) for example in examples if "state" in example] == [list(job.properties())]
    asked = [example for example in examples if "args" in example]
    assert [example["method"] for example in asked] == ["create", "create_backup", "prepare"]
    for method in {**vars(Ours), **vars(Trove)}.values():
        if getattr(method, "exposed", False) and method.__name__ != "refuse":
            assert f"``{method.__name__}" in text
