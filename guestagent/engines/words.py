"""What a tool says meanwhile, on stderr, and what it means to others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from guestagent.engines import Stage

Told = tuple[re.Pattern[str], Stage]
"""Words, and the stage that a dump enters with them."""


def told(words: str, stage: Stage) -> Told:
    """The regular expression ``words``, as a line that begins with the time, and maybe more, ends with them."""
    return re.compile(rf"[\]0-9] (?:{words})$"), stage


def stage_told(line: str, all_told: Sequence[Told]) -> Stage | None:
    """The stage that the line tells."""
    return next((stage for words, stage in all_told if words.search(line)), None)
