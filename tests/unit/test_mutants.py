"""The list of guards fits the code and the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutation import __main__ as mutation
from tests.mutation import guards as listed
from tests.mutation import table, trial
from tests.mutation.__main__ import main
from tests.mutation.guards import ROOT, Guard, Rotten, guards
from tests.mutation.trial import Outcome, Result
from tests.unit.named_tests import missing

GUARDS = guards()
ONE = GUARDS[0]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "-"))
def test_a_guard_is_where_the_list_says(guard: Guard) -> None:
    source = (ROOT / guard.file).read_text(encoding="utf-8")
    assert guard.without(source) != source
    assert missing([(test.partition("::")[0], test.partition("::")[2]) for test in guard.tests]) == []


def test_a_list_that_does_not_fit_is_told() -> None:
    with pytest.raises(Rotten, match="has its text 0 times"):
        ONE.without("pass\n")
    with pytest.raises(Rotten, match="has its text 2 times"):
        replace(ONE, text="x").without("x = x\n")
    with pytest.raises(SyntaxError):
        replace(ONE, text="x", becomes="(").without("x = 1\n")


def test_a_list_that_makes_no_sense_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "HERE", tmp_path)
    whole = 'name = "n"\nfile = "f"\ntext = "t"\nbecomes = "b"\n'
    for text, why in (
        (f'topic = "t"\n[[guard]]\n{whole}', "must have"),
        (f'topic = "t"\n[[guard]]\n{whole}tests = []\n', "no tests"),
        (f'topic = "t"\n[[guard]]\n{whole}tests = ["a"]\n[[guard]]\n{whole}tests = ["a"]\n', "same name: n"),
    ):
        (tmp_path / "list.toml").write_text(text)
        with pytest.raises(Rotten, match=why):
            guards()


def test_a_guard_that_nobody_knows_is_told() -> None:
    with pytest.raises(Rotten, match="no guard has the name nobody"):
        main(["--guard", "nobody"])


def test_the_page_shows_what_survived() -> None:
    page = table.drawn([ONE], [Result(ONE.name, Outcome.SURVIVED, "", 1.0, "")])
    assert "0 of 1 guards" in page
    assert "**survived**" in page


def test_the_page_has_every_guard_and_all_were_missed() -> None:
    page = (ROOT / "docs" / "mutants.rst").read_text(encoding="utf-8")
    assert [guard.name for guard in GUARDS if f"* - {guard.name}\n" not in page] == []
    assert f"{len(GUARDS)} of {len(GUARDS)} guards" in page


def test_what_is_known_of_other_guards_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "results.json", tmp_path / "page.rst"
    for outcome, names in ((Outcome.SURVIVED, [ONE.name, GUARDS[1].name]), (Outcome.KILLED, [GUARDS[1].name])):
        made = [Result(name, outcome, "unit/test_x.py::test_y", 1.0, "words") for name in names]
        monkeypatch.setattr(mutation, "_tried", lambda *_, made=made: made)
        words = [word for name in names for word in ("--guard", name)]
        mutation.main([*words, "--json", str(file), "--table", str(page)])
    assert "1 of 2 guards" in page.read_text()
    found = {one["guard"]: one["outcome"] for one in json.loads(file.read_text())}
    assert found == {ONE.name: "survived", GUARDS[1].name: "killed"}


@pytest.mark.timeout(120)
def test_a_guard_that_is_removed_is_missed_and_put_back(tmp_path: Path) -> None:
    copy = trial.Copy(tmp_path)
    mine = next(guard for guard in GUARDS if guard.name == "a chain stands on a full")
    killed = copy.trial(mine)
    assert (killed.outcome, killed.by) == (Outcome.KILLED, "unit/test_chain.py::test_an_incremental_is_no_base")
    calm = copy.run("calm", [killed.by])
    assert (calm.outcome, calm.by) == (Outcome.SURVIVED, "")
    assert copy.trial(replace(mine, tests=("unit/test_nowhere.py",))).outcome is Outcome.BROKEN
