"""What both tools write about a backup, read strictly: checkpoints, info and the last line of stderr.

The two share their ancestry, and so the format of these files; MariaDB 11 only renamed them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from guestagent.engines import DumpFacts
from guestagent.errors import Corrupt, ToolError
from guestagent.model import MAX_LSN, Binlog, Checkpoints, Lsn, Version

PREFIXES = ("mariadb_backup", "xtrabackup")
"""What the names of the files begin with, the newer one first."""

DUMPED = frozenset({"full-backuped", "incremental"})
PREPARED = frozenset({"log-applied", "full-prepared"})

_NUMBER = re.compile(r"[0-9]{1,20}")
_KEY = re.compile(r"([a-z_]+) ?= ?(.*)")
_LEFT_OPEN = re.compile(r"\x07?(mariabackup|mariadb-backup): Warning: [0-9]+ files and 0 streams is left open")
"""What MariaDB's library says at the end of a process that has not closed its tables of Aria, all else being done."""
_POSITION = re.compile(r"filename '([^']*)', position '([0-9]{1,20})'(?:, GTID of the last change '([^']*)')?")


class _File:
    """One file of ``key = value`` lines, with errors that name the file and the line."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        pieces: dict[str, list[str]] = {}
        self._lines: dict[str, int] = {}
        key = ""
        for number, line in enumerate(text.split("\n"), start=1):
            found = _KEY.fullmatch(line)
            if found:
                key = found[1]
                if key in pieces:
                    raise ToolError(f"{name} line {number}: a second {key}")
                pieces[key], self._lines[key] = [found[2]], number
            elif key:
                # A GTID set of MySQL breaks its line after each comma.
                pieces[key].append(line)
            elif line.strip():
                raise ToolError(f"{name} line {number}: not a key and a value: {line[:80]!r}")
        self._values = {key: "\n".join(lines) for key, lines in pieces.items()}

    def text(self, key: str) -> str:
        """The value of ``key``, which must be there."""
        if key not in self._values:
            raise ToolError(f"{self._name}: no {key}", hint="the tool did not write it to the end; is state_dir full?")
        return self._values[key].strip()

    def lsn(self, key: str) -> Lsn:
        """The value of ``key`` as an LSN."""
        text = self.text(key)
        if not _NUMBER.fullmatch(text) or int(text) > MAX_LSN:
            raise self.wrong(key, "not an LSN")
        return Lsn(int(text))

    def version(self, key: str) -> str:
        """The value of ``key``, which must name a version."""
        text = self.text(key)
        try:
            Version.parse(text)
        except Corrupt as error:
            raise self.wrong(key, "not a version") from error
        return text

    def wrong(self, key: str, why: str) -> ToolError:
        """The error that says ``why`` about the value of ``key``."""
        return ToolError(f"{self._name} line {self._lines[key]}: {key} is {self.text(key)[:200]!r}, {why}")


def _open(files: Mapping[str, str], what: str) -> _File:
    names = [f"{prefix}_{what}" for prefix in PREFIXES]
    for name in names:
        if name in files:
            return _File(name, files[name])
    raise ToolError(f"neither {' nor '.join(names)} was written", hint="look at the tool's last lines")


def dump_facts(files: Mapping[str, str]) -> DumpFacts:
    """What the files of --extra-lsndir say of a dump; raises ToolError."""
    info = _open(files, "info")
    return DumpFacts(
        checkpoints=_checkpoints(_open(files, "checkpoints"), DUMPED),
        tool_version=info.version("tool_version"),
        server_version=info.version("server_version"),
        binlog=_binlog(info),
    )


def prepared_to(files: Mapping[str, str]) -> Lsn:
    """The to_lsn that a prepared directory has reached; raises ToolError."""
    return _checkpoints(_open(files, "checkpoints"), PREPARED).end


def confirmed(tail: Sequence[str]) -> bool:
    """Whether the last line that is not empty says that the run went well; one may follow that is no word on that."""
    lines = [line for line in tail if line.strip()]
    if lines and _LEFT_OPEN.fullmatch(lines[-1]):
        lines.pop()
    return bool(lines) and "completed OK!" in lines[-1]


def _checkpoints(file: _File, kinds: Collection[str]) -> Checkpoints:
    kind = file.text("backup_type")
    if kind not in kinds:
        raise file.wrong("backup_type", f"not one of {', '.join(sorted(kinds))}")
    found = Checkpoints(begin=file.lsn("from_lsn"), end=file.lsn("to_lsn"), last=file.lsn("last_lsn"))
    if kind != "incremental" and found.begin:
        raise file.wrong("from_lsn", "and a full begins at 0")
    if found.end < found.begin:
        raise file.wrong("to_lsn", f"before from_lsn {found.begin}")
    if found.last < found.end:
        raise file.wrong("last_lsn", f"before to_lsn {found.end}")
    return found


def _binlog(info: _File) -> Binlog | None:
    text = info.text("binlog_pos")
    if not text:
        return None
    found = _POSITION.fullmatch(text)
    if not found:
        raise info.wrong("binlog_pos", "not a file and a position")
    file, position, gtid = found.groups(default="")
    return Binlog(file=file, position=int(position), gtid="".join(gtid.split())) if file else None
