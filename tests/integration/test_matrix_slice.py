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

from guestagent import conductor
from guestagent.catalog import Catalog
from guestagent.conductor import Conductor
from guestagent.datadir import swap
from guestagent.datadir.staging import Staging, open_staging
from guestagent.errors import ObjectExists
from guestagent.jobs.ledger import Ledger
from guestagent.operations import restore, sweep
from guestagent.outbox.box import Outbox
from guestagent.storage import open_storage
from tests.servers.faults.gate import FaultGate
from tests.servers.faults.script import Script
from tests.servers.swift import shared_swift
from tests.torture import matrix_agent
from tests.torture.matrix_cases import Case, make_case, matrix, requests
from tests.torture.matrix_run import Stage, soaked, stage
from tests.torture.matrix_verdict import count, table
from tests.torture.soak import Record, Soak

CASES = (
    "full s3 sealed cli put-segment@2*2:reset-in",
    "incremental s3 sealed cli put-manifest@1*1:lost-ack",
    "incremental s3 sealed cli put-segment@1*5:503 list@1*1:lag",
    "full s3 sealed cli any@9*0:expired",
    "full s3 sealed cli put-manifest@1*1:200-error put-segment@1*1:twice",
    "replace s3 sealed cli get@5*1:stall-answer",
    "replace s3 sealed cli get@6*1:less",
    "restore s3 sealed cli get@3*2:reset-answer get@7*1:short",
    "verify s3 sealed cli get@1*0:skewed",
    "delete s3 sealed cli delete@1*5:lost-ack-500",
    "rotate s3 sealed cli put-key@1*2:lost-ack put-key@4*0:500",
    "rotate s3 sealed cli put-key@1*1:swallow",
    "full s3 sealed cli put-key@1*1:swallow",
    "refused-delete s3 sealed cli get@2*1:less",
    "rotate s3 sealed cli get@1*1:less",
    "rotate s3 sealed cli get@1*0:flip",
    "full s3 sealed rpc put-manifest@1*1:lost-ack",
    "restore s3 sealed rpc get@3*2:reset-answer",
    "full s3 plain cli put-manifest@1*0:late",
    "full s3 plain cli put-manifest@1*1:swallow",
    "refused-delete s3 plain cli get@2*0:less",
    "delete s3 plain cli list@1*0:lag",
    "full s3 plain cli put-manifest@1*0:reset-after get@1*1:reset-answer",
    "full s3 plain cli put-manifest@1*0:reset-after get@1*1:stall-answer",
    "full s3 plain rpc put-segment@2*0:500 delete@1*1:500",
    "incremental s3 plain rpc get@1*0:short",
    "verify s3 plain rpc get@2*0:short",
    "full file sealed cli put-segment@3*1:full",
    "incremental file sealed cli put-segment@2*1:cut",
    "incremental file sealed cli put-manifest@1*1:lost-ack",
    "replace file sealed cli get@6*0:io-error",
    "rotate file sealed cli put-key@2*2:cut",
    "full file sealed cli put-key@1*1:cut",
    "delete file sealed cli delete@2*1:read-only",
    "restore file sealed cli get@5*1:flip",
    "incremental file sealed rpc put-segment@3*1:full",
    "replace file sealed rpc get@6*0:io-error",
    "full file plain cli put-manifest@1*1:cut",
    "verify file plain cli get@4*1:less",
    "restore file plain rpc get@4*1:flip",
    "delete file plain rpc delete@2*1:denied",
    "refused-delete file plain rpc get@1*0:io-error",
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
        (Catalog, "check_stored", "incremental file plain cli put-segment@2*1:cut", "has another size"),
        (Catalog, "discard", "full file plain cli put-segment@3*1:full", "a sweep leaves ['guest1/"),
        (Ledger, "fail", "full file plain cli put-segment@1*1:full", "is stuck: running"),
        (sweep, "_mark", "full file plain cli put-segment@3*1:full delete@1*0:io-error", "is known to no sweep"),
    ],
)
def test_the_judge_sees_what_a_missing_guard_lets_through(
    played: Stage, monkeypatch: pytest.MonkeyPatch, owner: Any, guard: str, line: str, wrong: str
) -> None:
    monkeypatch.setattr(owner, guard, lambda *_, **__: Path("/nowhere"))
    verdict = played.play(Case.parse(line))
    assert [one for one in verdict.wrong if wrong in one], verdict


@pytest.mark.parametrize(
    ("owner", "guard", "line", "wrong"),
    [
        (Conductor, "_update", "full file plain rpc get@99*1:io-error", "the row says NEW, the job completed"),
        (Conductor, "_notify", "full file plain rpc put-segment@1*1:full", "Trove is notified by set()"),
        (Conductor, "_is_spoilt", "restore file plain rpc get@4*0:io-error", "the job is failed"),
        (Outbox, "done", "incremental file plain rpc get@99*1:io-error", "nobody takes what the outbox holds"),
        (Ledger, "tell", "verify file plain rpc get@99*1:io-error", "nobody has heard of the end"),
    ],
)
def test_the_judge_sees_what_an_agent_does_not_tell(
    played: Stage, monkeypatch: pytest.MonkeyPatch, owner: Any, guard: str, line: str, wrong: str
) -> None:
    monkeypatch.setattr(matrix_agent, "SOON", 1.0)
    monkeypatch.setattr(owner, guard, lambda *_, **__: None)
    verdict = played.play(Case.parse(line))
    assert [one for one in verdict.wrong if wrong in one], verdict


def test_the_judge_sees_a_row_that_names_another_place(played: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    really = conductor._end
    monkeypatch.setattr(conductor, "_end", lambda job, *, digits: really(job, digits=digits) | {"location": "file:///"})
    verdict = played.play(Case.parse("full file plain rpc get@99*1:io-error"))
    assert [one for one in verdict.wrong if "and what is stored is" in one], verdict


def test_the_judge_sees_a_silent_difference(played: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    really = swap.swap

    def damaged(target: Path, *, incoming: Path, keep_as: str) -> Path | None:
        (incoming / "shop" / "orders.ibd").write_bytes(b"other rows")
        return really(target, incoming=incoming, keep_as=keep_as)

    monkeypatch.setattr(swap, "swap", damaged)
    verdict = played.play(Case.parse("replace file plain cli get@99*1:io-error"))
    assert verdict.wrong == ["a silent difference: what was restored is not what was backed up"]


def test_the_judge_sees_old_data_that_is_lost(played: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(target: Path) -> Staging:
        (target / "ibdata1").unlink()
        return open_staging(target)

    monkeypatch.setattr(restore, "open_staging", careless)
    verdict = played.play(Case.parse("replace file plain cli get@5*0:io-error"))
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
        (case.story, case.store, case.sealed, case.face, fault.kind, fault.what)
        for case in (make_case(7, number) for number in range(len(every)))
        for fault in case.script.faults[:1]
    }
    assert met == set(every)


def test_a_story_makes_as_many_requests_as_cases_count_on(played: Stage) -> None:
    for line in ("full file sealed cli none", "restore file plain rpc none", "incremental file sealed rpc none"):
        case = Case.parse(line)
        verdict = played.play(case)
        assert verdict.wrong == []
        assert verdict.requests == {
            kind.value: made for kind, made in requests(case.story, case.store, case.sealed, case.face).items()
        }


def test_a_table_is_made_of_records(played: Stage, tmp_path: Path) -> None:
    record = Record("matrix", 7)
    for line in ("delete file sealed cli delete@2*1:read-only", "full file sealed rpc get@99*1:denied"):
        count(record, played.play(Case.parse(line)))
    assert (record.runs, record.faulted, record.wrong) == (2, 1, [])
    assert Record.read(record.write(tmp_path)) == record
    lines = table([record, record]).splitlines()
    assert len({len(line) for line in (lines[0], lines[2], lines[-1])}) == 1
    assert "``read-only``" in lines[4]
    assert [line.split()[-1] for line in lines[3:-1]] == ["0"] * 5
    assert "0 + 2" in lines[4]


def test_a_soak_plays_a_share_of_a_seed_at_least_once() -> None:
    record = soaked(Soak("matrix", 7, 0, until=0), share=1, shares=2)
    assert (record.runs, record.wrong) == (1, [])
