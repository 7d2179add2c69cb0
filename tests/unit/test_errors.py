"""The error tree: what each class says to machines, to shells and to people."""

from __future__ import annotations

import re
import sys

import pytest

from guestagent import errors
from guestagent.errors import GuestagentError, StorageError, ToolError, UsageError
from guestagent.transport.oslo import common


def family() -> list[type[GuestagentError]]:
    return [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, GuestagentError)]


def drawn() -> dict[str, tuple[int, str, int]]:
    """The tree as the module's docstring draws it: depth, code and exit status by name."""
    lines = re.findall(r"^    ( *)([A-Z]\w+) +([a-z-]+) +(\d+)", errors.__doc__ or "", re.MULTILINE)
    return {name: (len(indent) // 2, code, int(status)) for indent, name, code, status in lines}


def test_the_docstring_draws_every_class() -> None:
    assert drawn().keys() == {found.__name__ for found in family()}


@pytest.mark.parametrize("found", family(), ids=lambda found: found.__name__)
def test_a_class_is_as_the_docstring_draws_it(found: type[GuestagentError]) -> None:
    depth = found.__mro__.index(GuestagentError)

    assert drawn()[found.__name__] == (depth, found.code, found.exit_status)


def test_each_family_has_an_exit_status_of_its_own() -> None:
    by_status: dict[int, set[str]] = {}
    for found in family():
        heads = [parent for parent in found.__mro__ if parent.__base__ is GuestagentError]
        by_status.setdefault(found.exit_status, set()).update(head.__name__ for head in heads)

    assert by_status.pop(1) == {"ToolError", "Stalled"}
    assert all(len(heads) == 1 for heads in by_status.values())


def test_the_text_is_what_then_the_hint() -> None:
    error = StorageError("bucket b7 is missing", hint="create it")

    assert str(error) == "bucket b7 is missing; create it"
    assert (error.what, error.hint) == ("bucket b7 is missing", "create it")


def test_without_a_hint_the_text_is_what_alone() -> None:
    assert str(UsageError("not a backup id: 'x'")) == "not a backup id: 'x'"


def test_a_tool_error_carries_the_last_lines() -> None:
    error = ToolError("mariabackup failed", hint="look", tail=("one", "two"))

    assert (str(error), error.tail) == ("mariabackup failed; look", ("one", "two"))
    assert ToolError("mariabackup failed").tail == ()


@pytest.mark.parametrize("found", family(), ids=lambda found: found.__name__)
def test_an_error_is_the_same_at_the_other_end_of_a_call(found: type[GuestagentError]) -> None:
    """oslo.messaging makes it anew from its arguments and keywords, as a subclass that nobody needs to know."""
    try:
        raise found("no store", hint="wait")
    except GuestagentError:
        written = common.serialize_remote_exception(sys.exc_info())
    remote = common.deserialize_remote_exception(written, [errors.__name__])

    assert isinstance(remote, found)
    assert type(remote) is not found
    assert (remote.what, remote.hint) == ("no store", "wait")
    assert (remote.code, remote.exit_status) == (found.code, found.exit_status)


def test_an_error_without_a_hint_has_none_at_the_other_end() -> None:
    assert UsageError("x").kwargs == {"hint": ""}
