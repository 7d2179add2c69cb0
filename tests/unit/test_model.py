"""Pure values: identifiers that can be nothing else, and versions that compare by number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import Corrupt, UsageError
from guestagent.model import MAX_LSN, Version, backup_id, instance_id

ID = "2f0e9ab4-8b13-4f3c-9f4e-0a1b2c3d4e5f"


def test_a_backup_id_is_a_uuid_in_lower_case() -> None:
    assert backup_id(ID) == ID
    assert backup_id(ID.upper()) == ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        ID[:-1],
        ID + "0",
        ID.replace("-", ""),
        "{" + ID + "}",
        "urn:uuid:" + ID,
        " " + ID,
        ID + "\n",
        "../" + ID,
        ID.replace("2", "\N{FULLWIDTH DIGIT TWO}"),
    ],
)
def test_nothing_else_is_a_backup_id(text: str) -> None:
    with pytest.raises(UsageError, match="not a backup id") as caught:
        backup_id(text)
    assert "UUID" in caught.value.hint


@pytest.mark.parametrize("text", ["a", "7", "vm-1.example_net", "x" * 128])
def test_an_instance_id_is_taken_as_it_is(text: str) -> None:
    assert instance_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "_x",
        "a/b",
        "a b",
        "a\n",
        "a\0",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "x" * 129,
    ],
)
def test_what_is_not_one_harmless_path_component_is_no_instance_id(text: str) -> None:
    with pytest.raises(UsageError, match="not an instance id") as caught:
        instance_id(text)
    assert caught.value.hint


@given(st.text(max_size=200))
def test_an_instance_id_never_leaves_its_folder(text: str) -> None:
    try:
        accepted = instance_id(text)
    except UsageError:
        return
    assert accepted == text
    assert "/" not in accepted
    assert not accepted.startswith(".")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("10.11.19-MariaDB-0+deb12u1", Version(10, 11, 19)),
        ("xtrabackup version 8.0.35-31 based on MySQL server 8.0.35", Version(8, 0, 35)),
        ("5.5.5-10.6.2-MariaDB", Version(5, 5, 5)),
        ("11.8.0", Version(11, 8, 0)),
    ],
)
def test_the_first_version_of_a_text_is_read(text: str, version: Version) -> None:
    assert Version.parse(text) == version


@pytest.mark.parametrize(
    "text", ["", "10.11", "MariaDB", "1..2.3", "9" * 5000 + ".1.1", "\N{ARABIC-INDIC DIGIT ONE}.1.1"]
)
def test_a_text_without_a_version_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt, match="no version"):
        Version.parse(text)


def test_versions_compare_by_number() -> None:
    assert Version(10, 9, 8) < Version(10, 11, 2) < Version(11, 0, 0)


def test_a_version_shows_its_numbers_and_its_series() -> None:
    assert (str(Version(10, 11, 19)), Version(10, 11, 19).series) == ("10.11.19", "10.11")


def test_an_lsn_has_64_bits() -> None:
    assert MAX_LSN == 0xFFFF_FFFF_FFFF_FFFF
