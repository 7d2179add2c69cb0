"""Which backups a caller may name by their location: those in the agent's own kind of store, and never a path of ours.

A ``file://`` location must lie in the very store that is configured: anything else would let a caller choose which
files of this host are read as a backup.  An ``s3://`` location may be any bucket that the agent's credentials reach.
"""

from __future__ import annotations

import re

from guestagent.catalog import split_location
from guestagent.errors import Refused, UsageError
from guestagent.operations.host import Host
from guestagent.rpc.checks import LOCATION_LIMIT, Arguments, is_id, shown
from guestagent.storage import is_key

_CREDENTIALS = re.compile(r"//.*@", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")


def source(given: Arguments, name: str, host: Host) -> str:
    """A backup's id, or its location."""
    text = given.text(name, limit=LOCATION_LIMIT)
    return location(given, name, host) if "://" in text else given.id(name)


def location(given: Arguments, name: str, host: Host) -> str:
    """A backup's location that this agent may read; raises UsageError for none, and Refused for one elsewhere."""
    text = given.text(name, limit=LOCATION_LIMIT)
    root, own = _roots(given, name, text, host)
    scheme, _, rest = root.partition("://")
    if scheme != own.partition("://")[0]:
        raise Refused(f"{name} {_shown(text)} is in another kind of store than {own}", hint="configure [storage] url")
    if scheme == "s3":
        if not _BUCKET.fullmatch(rest.partition("/")[0]) or not is_key(rest):
            raise given.wrong(name, f"names no bucket and prefix: {_shown(text)}")
    elif root != own:
        raise Refused(f"{name} {_shown(text)} is outside of this agent's store {own}", hint="name a backup in it")
    return text


def own_backup(given: Arguments, name: str, host: Host) -> str:
    """The id of the backup at a location, which must be in this agent's own store."""
    text = location(given, name, host)
    root, own = _roots(given, name, text, host)
    if root != own:
        raise Refused(f"{name} {_shown(text)} is in another store than {own}", hint="take a full backup")
    return split_location(text)[2]


def _roots(given: Arguments, name: str, text: str, host: Host) -> tuple[str, str]:
    """The URLs of the location's store and of our own."""
    try:
        root, instance, wanted = split_location(text)
    except UsageError as error:
        raise given.wrong(name, f"is no backup's location: {_shown(text)}") from error
    if not is_id(text.rpartition("/")[2]):
        raise given.wrong(name, f"must end with a UUID in lower case with dashes: {_shown(text)}")
    return root, split_location(host.catalog.location(instance, wanted))[0]


def _shown(text: str) -> str:
    """A location as it may stand in a message: somebody may have put credentials into it."""
    return shown(_CREDENTIALS.sub("//***@", text))
