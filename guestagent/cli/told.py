"""How failures are told: one line on stderr, what and then the hint, and the exit status of the family."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import NoReturn

from guestagent import errors
from guestagent.errors import GuestagentError, UsageError

FAMILIES: tuple[type[GuestagentError], ...] = (
    errors.GuestagentError,
    errors.UsageError,
    errors.Refused,
    errors.NotFound,
    errors.ChainBroken,
    errors.Corrupt,
    errors.Busy,
    errors.StorageError,
    errors.DatabaseError,
    errors.Cancelled,
)

STATUSES = "Exit statuses: 0 done, " + ", ".join(f"{family.exit_status} {family.code}" for family in FAMILIES) + "."


def tell(error: GuestagentError, *, by: str = "guestagent") -> int:
    """Print an error as one line on stderr, after the program's name; gives its exit status."""
    with suppress(OSError):  # nobody reads it, but the status still counts
        print(f"{by}: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
    return error.exit_status


def one_line_errors(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Have a parser tell what is wrong in the manner of all other errors, without its usage before."""

    def fail(message: str) -> NoReturn:
        error = UsageError(message, hint=f"see {parser.prog} --help")
        sys.exit(tell(error, by=parser.prog.split()[0]))

    # Not a class of our own, since it is cliff that makes the parser.
    parser.error = fail  # type: ignore[method-assign]
    return parser
