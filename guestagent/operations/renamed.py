"""Tablespaces that a link brings whole, and under another name than the chain has them by.

mariabackup copies a table whose first page reached the disk only during the dump at the dump's end, as ``NAME.new``;
a prepare lays that beside the rest.  Was the table renamed since the parent's dump, then the base has it by its old
name, too: the prepare comes upon two files of one tablespace, does all its work, and ends with status 1 without a word
(10.11.19).  What the link has is the newer, so that the file of the old name can go before.
"""

from __future__ import annotations

import logging
from pathlib import Path

from guestagent.datadir.durable import explained
from guestagent.operations.tablespace import SPACE_ID

LOG = logging.getLogger(__name__)

NEW = ".new"


def drop_old_names(base: Path, link: Path) -> None:
    """Remove from the base what ``link`` has anew by another name; raises for a file that cannot be read."""
    with explained(f"look at the tablespaces of {base}"):
        brought = {space: path.relative_to(link).with_suffix(".ibd") for path, space in _spaces(link, NEW).items()}
        old = _spaces(base, ".ibd") if brought else {}
        for path, space in old.items():
            if space in brought and brought[space] != (name := path.relative_to(base)):
                LOG.info("%s was renamed to %s since the parent's dump: the older file goes", name, brought[space])
                path.unlink()


def _spaces(directory: Path, suffix: str) -> dict[Path, int]:
    """The files of tables, each with its tablespace; without those whose first page was never written."""
    found = {path: _space(path) for path in sorted(directory.glob(f"*/*{suffix}"))}
    return {path: space for path, space in found.items() if space}


def _space(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(SPACE_ID.stop)[SPACE_ID])
