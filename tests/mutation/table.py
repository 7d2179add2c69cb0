"""The page of the documentation that shows what came of the trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from tests.mutation.guards import Guard
from tests.mutation.trial import Outcome, Result

_HEAD = """\
.. Written by scripts/mutants --table.

==============
Guards removed
==============

A promise is worth what its tests notice.  ``scripts/mutants`` takes a copy of the tree, removes one guard from the
code, runs the tests that should notice, and puts it back; and so with each guard alone.  The tests must meet the
copy, one of them must fail, and the same one must pass with every guard in its place; or the guard counts as not
missed, and the exit status is 1.

``tests/mutation/*.toml`` is the list: a guard's file, its exact text, and what stands there without it.  A unit test
keeps the list true: code that was changed so that a text is not found in it any more fails that test.

"""


def drawn(guards: Sequence[Guard], results: Sequence[Result]) -> str:
    """The whole page."""
    by_name = {result.guard: result for result in results}
    tried = [guard for guard in guards if guard.name in by_name]
    killed = sum(result.outcome is Outcome.KILLED for result in results)
    last = f"{killed} of {len(tried)} guards, on {datetime.now(tz=UTC):%Y-%m-%d}."
    return "\n".join([_HEAD + last, *_chapters(tried, by_name)]) + "\n"


def _chapters(guards: Sequence[Guard], results: dict[str, Result]) -> Iterator[str]:
    for topic, group in groupby(guards, key=lambda guard: guard.topic):
        yield from ("", topic, "=" * len(topic), "")
        yield from (".. list-table::", "   :header-rows: 1", "   :widths: 40 22 38", "")
        yield from _row("guard", "removed from", "noticed by")
        for guard in group:
            yield from _row(guard.name, f"``{guard.file.removeprefix('guestagent/')}``", _noticed(results[guard.name]))


def _row(*cells: str) -> Iterator[str]:
    for number, cell in enumerate(cells):
        yield f"   {'* -' if number == 0 else '  -'} {cell}"


def _noticed(result: Result) -> str:
    if result.outcome is not Outcome.KILLED:
        return f"**{result.outcome.value}**"
    file, _, test = result.by.partition("::")
    return f"{file}: {test}"
