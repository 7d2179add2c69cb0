"""A slice of the matrix: one case of each kind on every store, and what its runs have found so far.

Thousands are played by tests/torture/test_matrix.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from guestagent.catalog import Catalog
from guestagent.datadir import swap
from guestagent.datadir.staging import Staging, open_staging
from guestagent.errors import ObjectExists
from guestagent.jobs.ledger import Ledger
from guestagent.operations import restore, sweep
from guestagent.storage import open_storage
from tests.servers.faults.gate import FaultGate
from tests.servers.faults.script import Script
from tests.servers.swift import shared_swift
from tests.torture.matrix_cases import Case, make_case, matrix
from tests.torture.matrix_run import Stage, stage
from tests.torture.matrix_verdict import summary, table

CASES = (
    "full s3 sealed put-segment@2*2:reset-in",
    "incremental s3 sealed put-manifest@1*1:lost-ack",
    "incremental s3 sealed put-segment@1*5:503 list@1*1:lag",
    "full s3 sealed any@9*0:expired",
    "full s3 sealed put-manifest@1*1:200-error put-segment@1*1:twice",
    "replace s3 sealed get@5*1:stall-answer",
    "replace s3 sealed get@6*1:less",
    "restore s3 sealed get@3*2:reset-answer get@7*1:short",
    "verify s3 sealed get@1*0:skewed",
    "delete s3 sealed delete@1*5:lost-ack-500",
    "rotate s3 sealed put-key@1*2:lost-ack put-key@4*0:500",
    "full file sealed put-segment@3*1:full",
    "incremental file sealed put-segment@2*1:cut",
    "incremental file sealed put-manifest@1*1:lost-ack",
    "replace file sealed get@6*0:io-error",
    "full s3 plain put-manifest@1*0:late",
    "full s3 plain put-manifest@1*1:swallow",
    "full file plain put-manifest@1*1:cut",
    "rotate s3 sealed put-key@1*1:swallow",
    "full s3 sealed put-key@1*1:swallow",
    "full file sealed put-key@1*1:cut",
    "refused-delete s3 plain get@2*0:less",
    "refused-delete s3 sealed get@2*1:less",
    "delete s3 plain list@1*0:lag",
    "full s3 plain put-manifest@1*0:reset-after get@1*1:reset-answer",
    "full s3 plain put-manifest@1*0:reset-after get@1*1:stall-answer",
    "rotate s3 sealed get@1*1:less",
    "rotate s3 sealed get@1*0:flip",
    "delete file sealed delete@2*1:read-only",
)


@pytest.fixture(scope="module")
def played() -> Iterator[Stage]:
    with stage() as made:
        yield made


@pytest.mark.parametrize("line", CASES)
def test_a_story_on_a_store_that_goes_wrong(played: Stage, line: str) -> None:
    verdict = played.play(Case.parse(line))
    assert verdict.struck, verdict
    assert verdict.wrong == [], verdict


@pytest.mark.parametrize(
    ("owner", "guard", "line", "wrong"),
    [
        (Catalog, "check_stored", "incremental file plain put-segment@2*1:cut", "has another size"),
        (Catalog, "discard", "full file plain put-segment@3*1:full", "a sweep leaves ['guest1/"),
        (Ledger, "fail", "full file plain put-segment@1*1:full", "is stuck: running"),
        (sweep, "_mark", "full file plain put-segment@3*1:full delete@1*0:io-error", "is known to no sweep"),
    ],
)
def test_the_judge_sees_what_a_missing_guard_lets_through(
    played: Stage, monkeypatch: pytest.MonkeyPatch, owner: Any, guard: str, line: str, wrong: str
) -> None:
    monkeypatch.setattr(owner, guard, lambda *_, **__: Path("/nowhere"))
    verdict = played.play(Case.parse(line))
    assert [one for one in verdict.wrong if wrong in one], verdict


def test_the_judge_sees_a_silent_difference(played: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    really = swap.swap

    def damaged(target: Path, *, incoming: Path, keep_as: str) -> Path | None:
        (incoming / "shop" / "orders.ibd").write_bytes(b"other rows")
        return really(target, incoming=incoming, keep_as=keep_as)

    monkeypatch.setattr(swap, "swap", damaged)
    verdict = played.play(Case.parse("replace file plain get@99*1:io-error"))
    assert verdict.wrong == ["a silent difference: what was restored is not what was backed up"]


def test_the_judge_sees_old_data_that_is_lost(played: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(target: Path) -> Staging:
        (target / "ibdata1").unlink()
        return open_staging(target)

    monkeypatch.setattr(restore, "open_staging", careless)
    verdict = played.play(Case.parse("replace file plain get@5*0:io-error"))
    assert "the old datadir is not what it was" in verdict.wrong


def test_a_store_that_checks_signatures_and_checksums_sees_no_gate() -> None:
    swift, body = shared_swift(), b"0123456789abcdef" * 4096
    swift.make_bucket("gated")
    port = urlsplit(swift.endpoint_url).port
    assert port
    with FaultGate(port) as gate:
        settings = swift.settings(endpoint_url=gate.url, max_attempts=3)
        with closing(open_storage("s3://gated/p", s3=settings)) as store:
            line = "put-segment@1*1:lost-ack put-segment@2*1:reset-in put-manifest@1*1:twice get@1*1:short list@1*1:500"
            play = gate.begin(Script.parse(line))
            store.put("g/b/data/00000000", body, sha256=hashlib.sha256(body).hexdigest())
            with pytest.raises(ObjectExists):  # our own, which came twice
                store.put_new("g/b/manifest.json", b"{}")
            assert store.get("g/b/data/00000000", limit=len(body)) == body
            assert [found.key for found in store.list("g/")] == ["g/b/data/00000000", "g/b/manifest.json"]
            store.delete(["g/b/data/00000000", "g/b/manifest.json"])
            assert list(store.list()) == []
        assert {hit.fault for hit in play.hits} == set(play.script.faults)


def test_a_case_is_made_of_a_seed_and_read_back_from_its_line() -> None:
    for number in range(200):
        case = make_case(7, number)
        assert case == make_case(7, number)
        assert Case.parse(str(case)) == case


def test_the_cases_of_a_seed_meet_every_cell() -> None:
    every = matrix()
    met = {
        (case.story, case.store, case.sealed, case.script.faults[0].kind, case.script.faults[0].what)
        for case in (make_case(7, number) for number in range(len(every)))
    }
    assert met == set(every)


def test_a_table_is_made_of_summaries(played: Stage) -> None:
    verdicts = [played.play(Case.parse(CASES[-1])), played.play(Case.parse("full file sealed get@99*1:denied"))]
    made = summary(7, verdicts)
    assert (made["runs"], made["faulted"], made["wrong"]) == (2, 1, [])
    lines = table([made, made]).splitlines()
    assert len({len(line) for line in (lines[0], lines[2], lines[-1])}) == 1
    assert "``read-only``" in lines[4]
    assert [line.split()[-1] for line in lines[3:-1]] == ["0", "0", "0"]
