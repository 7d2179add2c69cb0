"""The data set of the benchmarks is made, kept, copied, and changes where it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.dataset import DataSet, change, ensure, ensure_tables, fingerprint
from tests.servers.workplace import workplace

pytestmark = pytest.mark.integration

GIGABYTES = 0.02
SMALL = 20
BIG = 13
SCALE = 30
MODEST = ("--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M")
"""Less than a benchmark's server has, for a test."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that the server's user may pass through."""
    with workplace() as path:
        yield path


@pytest.fixture(scope="module")
def data(place: Path) -> DataSet:
    """A data set that no test changes."""
    return ensure(place / "data", GIGABYTES, small_tables=SMALL)


def test_a_data_set_is_made_once_and_its_copy_changes_as_the_seed_says(data: DataSet, place: Path) -> None:
    assert ensure(data.directory, GIGABYTES, small_tables=SMALL) == data
    found = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        copy = data.pristine(place / name)
        copy.start(*MODEST)
        with copy.session() as session:
            before = fingerprint(session)
            change(session, 0.1, seed=seed)
            found.append((before, fingerprint(session)))
        copy.stop()
    (before, changed), same, other = found
    assert len(before) == BIG + SMALL
    assert sum(before[name] != changed[name] for name in before) >= BIG
    assert same == (before, changed)
    assert other[0] == before
    assert other[1] != changed


def test_another_data_set_is_not_taken_for_the_wanted_one(data: DataSet) -> None:
    with pytest.raises(ValueError, match="another data set"):
        ensure(data.directory, GIGABYTES, small_tables=SMALL, seed=1)
    with pytest.raises(ValueError, match="not empty"):
        ensure(data.directory.parent, GIGABYTES)


def test_many_small_tables_are_made(place: Path) -> None:
    data = ensure_tables(place / "scale", SCALE)
    assert len(list(data.datadir.glob("many/*.ibd"))) == SCALE
    assert data.record["index_pages"] == {"primary": SCALE}
