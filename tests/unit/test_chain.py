"""Chains: which links hold, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from guestagent.chain import MAX_LINKS, Chain, check_continues
from guestagent.errors import ChainBroken
from guestagent.manifest import Backup, Parent
from guestagent.model import Kind
from tests.manifests import a_manifest, child_of, links_of, lsns, stored


def refusal(*links: Backup) -> str:
    with pytest.raises(ChainBroken) as caught:
        Chain(links)
    assert caught.value.hint == "take a full backup"
    return caught.value.what


def test_a_full_alone_is_a_chain() -> None:
    (base,) = links = links_of(1)
    chain = Chain(tuple(links))

    assert (chain.base, chain.tip, len(chain), list(chain)) == (base, base, 1, [base])


def test_links_are_kept_base_first() -> None:
    base, first, second = links = links_of(3)
    chain = Chain(tuple(links))

    assert (chain.base, chain.tip, list(chain)) == (base, second, [base, first, second])
    assert (chain.raw_size, chain.stored_size, len(chain)) == (3 * 4500, 3 * 1200, 3)


def test_a_chain_needs_a_link() -> None:
    assert refusal() == "a chain of 0 links"


def test_the_longest_chain_holds_and_a_longer_one_does_not() -> None:
    links = links_of(MAX_LINKS + 1)

    assert len(Chain(tuple(links[:-1]))) == MAX_LINKS
    assert refusal(*links) == f"a chain of {MAX_LINKS + 1} links"


def test_an_incremental_is_no_base() -> None:
    _, first, second = links_of(3)

    assert refusal(first, second) == f"chain broken at {first.id}: an incremental without its parent"


def test_links_in_the_wrong_order_are_refused() -> None:
    base, first, second = links_of(3)

    assert refusal(base, second, first).startswith(
        f"chain broken at {second.id}: its parent is {first.id}, not {base.id}"
    )


def test_the_same_link_twice_is_refused() -> None:
    base, first = links_of(2)

    assert refusal(base, first, first) == f"chain broken at {first.id}: its parent is {base.id}, not {first.id}"
    assert refusal(base, base) == f"chain broken at {base.id}: its parent is nobody, not {base.id}"


def test_a_skipped_link_is_refused() -> None:
    base, first, second = links_of(3)

    assert refusal(base, second) == f"chain broken at {second.id}: its parent is {first.id}, not {base.id}"


def test_links_of_an_idle_server_hold_in_their_order_alone() -> None:
    base = stored(a_manifest(lsn=lsns(0, 100, 100)))
    first = child_of(base, 1, lsn=lsns(100, 100, 100))
    second = child_of(first, 2, lsn=lsns(100, 100, 100))

    assert list(Chain((base, first, second))) == [base, first, second]
    assert "its parent is" in refusal(base, second, first)
    assert "its parent is" in refusal(base, second)


def test_a_parent_that_was_replaced_is_refused() -> None:
    base, first = links_of(2)
    other = replace(base, checksum="0" * 64)

    assert refusal(other, first) == (
        f"chain broken at {first.id}: the manifest of its parent {base.id} is not the one that it was taken on"
    )


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"lsn": lsns(99, 200, 210)}, "from_lsn 99 does not continue to_lsn 100 of "),
        ({"engine": "xtrabackup"}, "engine xtrabackup does not continue engine mariabackup of "),
        ({"server_version": "10.6.1"}, "server 10.6.1 does not continue 10.11.19-MariaDB-0+deb12u1 of "),
        ({"datastore": "mysql"}, "server 10.11.19-MariaDB-0+deb12u1 does not continue 10.11.19"),
    ],
)
def test_what_does_not_continue_is_told(changes: dict[str, Any], wrong: str) -> None:
    base = stored(a_manifest())
    child = child_of(base, 1, **changes)

    assert refusal(base, child).startswith(f"chain broken at {child.id}: {wrong}")


def test_a_patch_release_in_between_is_no_break() -> None:
    base = stored(a_manifest())
    child = child_of(base, 1, server_version="10.11.20-MariaDB")

    check_continues(base, child)


def test_a_child_that_names_itself_is_refused() -> None:
    base, first = links_of(2)
    own = replace(first.manifest, parent=Parent(id=first.id, location="", checksum=first.checksum))

    assert "its parent is" in refusal(base, stored(own))


def test_a_full_in_the_middle_is_refused() -> None:
    base = stored(a_manifest())
    other = stored(a_manifest(1, kind=Kind.FULL))

    assert refusal(base, other) == f"chain broken at {other.id}: its parent is nobody, not {base.id}"
