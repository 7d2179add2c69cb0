"""How jobs are drawn: this host's own as well as those that an agent tells of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cliff.columns import FormattableColumn

from guestagent.cli.backup import Row, Rows

Properties = Mapping[str, Any]

PROPERTIES = (
    "id",
    "kind",
    "state",
    "phase",
    "percent",
    "done",
    "total",
    "rate",
    "left",
    "link",
    "links",
    "created",
    "started",
    "finished",
    "deadline",
    "origin",
    "request",
    "error",
    "result",
)
"""What a job shows; bytes, bytes a second, seconds, and times in UTC."""

LISTED = ("id", "kind", "state", "phase", "percent", "created", "started", "finished", "origin", "error")


class Details(FormattableColumn[Properties]):
    """Names and values for machines, and a line for each that says something for people."""

    def human_readable(self) -> str:
        """Lines such as ``name: nightly``; those of a list are indented below its name."""
        return "\n".join(f"{name}:{_written(value)}" for name, value in self._value.items() if value not in _NOTHING)


_NOTHING: tuple[Any, ...] = (None, "", [], {})


def _written(value: Any) -> str:
    if not isinstance(value, list):
        return f" {value}"
    lines = (_line(item) if isinstance(item, Mapping) else str(item) for item in value)
    return "".join(f"\n  {line}" for line in lines)


def _line(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in item.items() if value not in _NOTHING)


def detailed(value: Any) -> Any:
    """A value in the form in which it can be drawn."""
    return Details(value) if isinstance(value, Mapping) else value


def shown(properties: Properties, names: Sequence[str] = PROPERTIES) -> Row:
    """One thing, for a command that shows one; what an older agent does not tell is nothing."""
    return names, [detailed(properties.get(name)) for name in names]


def listed(jobs: Iterable[Properties]) -> Rows:
    """Jobs for a listing, each with its error in one line."""
    return LISTED, [[_in_line(name, job.get(name)) for name in LISTED] for job in jobs]


def _in_line(name: str, value: Any) -> Any:
    if name != "error" or not isinstance(value, Mapping):
        return value
    words = [str(value.get(part) or "") for part in ("what", "hint")]
    return "; ".join(" ".join(word.split()) for word in words if word)
