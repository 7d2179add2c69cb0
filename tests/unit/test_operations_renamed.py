"""Tables renamed since the parent's dump that a link brings whole: a prepare must not find them twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestagent.errors import GuestagentError
from guestagent.operations import renamed
from tests.fakes.bench import Bench, Tree, data_in

LATE = 7
"""A tablespace."""


def table(space: int, words: bytes = b"rows") -> bytes:
    """A file of InnoDB, as far as it counts here."""
    return bytes(34) + space.to_bytes(4) + words


def lay(top: Path, tree: Tree) -> None:
    """Put these files beside what is there."""
    for name, body in tree.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(body)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base with two tables."""
    lay(tmp_path / "base", {"shop/late.ibd": table(LATE), "shop/other.ibd": table(8), "shop/late.frm": b"frm"})
    return tmp_path / "base"


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link that has nothing yet."""
    lay(tmp_path / "link", {"shop/moved.frm": b"frm"})
    return tmp_path / "link"


def tables(base: Path) -> list[str]:
    """What the base has."""
    return sorted(str(path.relative_to(base)) for path in base.rglob("*.ibd"))


def test_a_chain_restores_through_a_table_that_was_renamed(bench: Bench) -> None:
    bench.write("first")
    lay(bench.source, {"shop/late.new": table(LATE)})
    full = bench.backup()
    (bench.source / "shop" / "late.new").unlink()
    lay(bench.source, {"shop/moved.new": table(LATE, b"more rows")})
    tip = bench.backup(full)
    bench.restore(tip, replace=True)
    restored = data_in(bench.datadir)
    assert restored["shop/moved.ibd"] == table(LATE, b"more rows")
    assert "shop/late.ibd" not in restored


@pytest.mark.parametrize("name", ["shop/moved.new", "other/late.new", "shop/with.dot.new"])
def test_the_older_name_goes(base: Path, link: Path, name: str) -> None:
    lay(link, {name: table(LATE)})
    renamed.drop_old_names(base, link)
    assert tables(base) == ["shop/other.ibd"]
    assert (base / "shop" / "late.frm").exists()


def test_the_same_name_stays(base: Path, link: Path) -> None:
    lay(link, {"shop/late.new": table(LATE)})
    renamed.drop_old_names(base, link)
    assert tables(base) == ["shop/late.ibd", "shop/other.ibd"]


@pytest.mark.parametrize("body", [table(9), table(0), b"", bytes(36)])
def test_a_table_that_is_new_or_was_never_written_takes_nothing_away(base: Path, link: Path, body: bytes) -> None:
    lay(base, {"shop/blank.ibd": bytes(100)})
    lay(link, {"shop/moved.new": body})
    renamed.drop_old_names(base, link)
    assert tables(base) == ["shop/blank.ibd", "shop/late.ibd", "shop/other.ibd"]


def test_what_is_no_table_is_left_alone(base: Path, link: Path) -> None:
    lay(base, {"late.ibd": table(LATE), "shop/t.MYD": table(LATE)})
    lay(link, {"shop/moved.new": table(LATE)})
    renamed.drop_old_names(base, link)
    assert tables(base) == ["late.ibd", "shop/other.ibd"]
    assert (base / "shop" / "t.MYD").exists()


def test_a_file_that_cannot_be_read_is_an_error(base: Path, link: Path) -> None:
    (link / "shop" / "moved.new").symlink_to("nowhere")
    with pytest.raises(GuestagentError, match="look at the tablespaces"):
        renamed.drop_old_names(base, link)
