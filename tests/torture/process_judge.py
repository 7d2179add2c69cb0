"""The judge of faults in processes: how a run may end, and what it may leave on the host and with the conductor.

Like matrix_checker, which looks at stores, it imports nothing of guestagent: it reads files, /proc and rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.torture import matrix_checker as checker
from tests.torture.process_cases import Case, Face, Story, Victim

_DIED = r"the process that ran it died"
_NO_PROGRESS = r"no progress for \d+ s in phase"
_NO_SPACE = r"[Nn]o space left|is full|Errcode: 28|OS error 28"
_TOOL = r"mariabackup (failed with exit status 1|died by SIG)"
_SERVER = rf"{_TOOL}|cannot reach the server|no answer|[Ll]ost connection|gone away|does not answer"
CAUSES: Mapping[tuple[Victim, str], str] = {
    (Victim.TOOL, "kill"): "died by SIGKILL",
    (Victim.TOOL, "term"): "died by SIGTERM",
    (Victim.TOOL, "stop"): _NO_PROGRESS,
    (Victim.TOOL, "flood-end"): r"failed with exit status 3: \[ERROR\] it is over",
    (Victim.RUNNER, "kill"): _DIED,
    (Victim.RUNNER, "term"): "SIGTERM",
    (Victim.SERVER, "kill"): _SERVER,
    (Victim.SERVER, "term"): _SERVER,
    (Victim.SERVER, "stop"): rf"{_NO_PROGRESS}|{_SERVER}",
    (Victim.STORE, "full"): _NO_SPACE,
    (Victim.STATE, "full"): rf"{_NO_SPACE}|{_DIED}|{_TOOL}|is state_dir full",
    (Victim.DATA, "full"): rf"{_NO_SPACE}|{_TOOL}|does not answer",
}
"""What a job says that fails of this; of what is not here none may fail."""
HARMLESS = {(Story.REPLACE, Victim.SERVER, "kill", "fetch")}
"""Faults that are none for the story: the server that is to be replaced dies."""
LONGEST = 240.0
"""Seconds that no case takes, and so no job, whatever the clock says."""
OURS = "#sql-guestagent"
_STATES = {"completed": "COMPLETED", "failed": "FAILED", "cancelled": "FAILED"}
_OWN = re.compile(r"^\S+ \S+ [A-Z]+ guestagent[^\n]*\nTraceback \(most", re.MULTILINE)
_MOMENT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass
class Verdict:
    """What came of a case."""

    case: Case
    ended: str = ""
    told: str = ""
    struck: bool = False
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0

    def __str__(self) -> str:
        struck = "struck" if self.struck else "not struck"
        return f"{self.case}: {self.ended} ({self.told}), {struck}, {self.seconds:.1f} s, wrong: {self.wrong}"

    @property
    def columns(self) -> list[str]:
        """What it counts in."""
        end = "completed" if self.ended == "completed" else "failed"
        return ["runs", *(["faulted", end] if self.struck else []), *(["wrong"] if self.wrong else [])]


# -- how it ended


def end_of(case: Case, record: Mapping[str, Any], *, struck: bool) -> list[str]:
    """What is wrong with how the job ended."""
    state, told = record["state"], words_of(record)
    wrong = [] if record["state"] != "completed" or not record["failure"] else ["it is completed, and has failed"]
    if state == "completed":
        return wrong
    if not struck:
        return [f"it is {state}, and nothing was struck: {told}"]
    if not re.search(cause_of(case), told):
        wrong.append(f"the cause is not named: {told}")
    if (state == "cancelled") != (case.fault.victim is Victim.RUNNER and case.fault.what == "term"):
        wrong.append(f"it is {state}")
    return wrong


def cause_of(case: Case) -> str:
    """What a failure of the case must say; it matches nothing where none may be."""
    fault, never = case.fault, r"(?!)"
    if (case.story, fault.victim, fault.what, fault.phase) in HARMLESS:
        return never
    return CAUSES.get((fault.victim, fault.what), never)


def words_of(record: Mapping[str, Any]) -> str:
    """What a job's record says of its failure."""
    failure = record["failure"] or {"what": "", "hint": ""}
    return "; ".join(word for word in (failure["what"], failure["hint"]) if word)


def agrees(status: int | None, record: Mapping[str, Any]) -> list[str]:
    """Whether a command's exit status is that of its record; None where it did not come to give one."""
    if status is None or (status == 0) == (record["state"] == "completed"):
        return []
    return [f"the command ended with {status}, and its record says {record['state']}"]


def times_of(record: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> list[str]:
    """Whether what is noted of times can be: nothing ends before it begins, nor takes hours of a clock that steps."""
    wrong = [] if _seconds(record) >= 0 else [f"the job ends {-_seconds(record):.0f} s before it begins"]
    if manifest is not None and not 0 <= _seconds(manifest) < LONGEST:
        wrong.append(f"the backup took {_seconds(manifest):.0f} s by its manifest")
    return wrong


def _seconds(found: Mapping[str, Any]) -> float:
    began, ended = found["started"], found["finished"]
    if not began or not ended:
        return 0.0
    return (datetime.strptime(ended, _MOMENT) - datetime.strptime(began, _MOMENT)).total_seconds()


# -- what is left


def host(state: Path) -> list[str]:
    """What is wrong with a host on which nothing is under way."""
    wrong = ["the host's lock is held"] if _held(state / "lock") else []
    if left := [path.name for path in (state / "scratch").glob("*")]:
        wrong.append(f"scratch is left: {left}")
    for path in (state / "jobs").glob("*.json"):
        try:
            checker.job(state, path.stem)
        except checker.Wrong as error:
            wrong.append(str(error))
    if left := [path.name for path in (state / "jobs").iterdir() if path.suffix not in (".json", "")]:
        wrong.append(f"what only a running job needs is left: {left}")
    return wrong


def _held(lock: Path) -> bool:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def tools(place: Path) -> dict[int, str]:
    """The living processes whose command names something below ``place``, other than servers, agents and ours."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").rstrip()
            state = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(place) in command and "mariadbd" not in command and not command.endswith(" serve") and state != "Z":
            found[int(process.name)] = command
    return found


def datadir(path: Path, *, completed: bool) -> list[str]:
    """What a restore may not leave in a datadir; one that has completed has forgotten the old data, too."""
    allowed = () if completed else (".old-",)
    names = [one.name for one in (path / OURS).glob("*")] if (path / OURS).exists() else []
    left = [name for name in names if name != "README" and not name.startswith(allowed or "\0")]
    return [f"left in the datadir: {left}"] if left or (completed and names) else []


def secrets(texts: Iterable[str], planted: Mapping[str, str]) -> list[str]:
    """The secrets, by name, that stand in any of the texts, whole or the better half of them."""
    told = "\n".join(texts)
    return [f"{name} was told" for name, secret in planted.items() if secret[: max(6, len(secret) // 2 + 1)] in told]


def tracebacks(said: Iterable[str], logs: Iterable[str]) -> list[str]:
    """Tracebacks that commands have shown, or agents logged as their own; libraries may tell of an outage in theirs."""
    found = [text for text in said if "Traceback (most" in text] + [log for log in logs if _OWN.search(log)]
    return ["a traceback"] if found else []


def row(case: Case, found: Mapping[str, Any], record: Mapping[str, Any], checksum: str | None) -> list[str]:
    """Whether the conductor's row of a backup agrees with its record and its manifest."""
    if case.face is Face.COMMAND or case.story is Story.REPLACE:
        return []
    if found.get("state") != _STATES[record["state"]]:
        return [f"the conductor's row says {found.get('state')}, the record {record['state']}"]
    if found["state"] == "COMPLETED":
        return [] if found["checksum"] == checksum and found["success"] else ["the row has another checksum"]
    what = record["failure"]["what"]
    return [] if what[:200] in found["note"] else [f"the row does not name the cause: {found['note']}"]


def fits(case: Case, *, old: bool, new: bool, state: str, kept: bool) -> list[str]:
    """Whether the data, which are the old or the new or neither, are what the end of a restore promises.

    Who is killed, or cannot write down how it ended, may have done it all the same; and the old data are ``kept``
    beside the new where a server that hangs is not to be moved from them.
    """
    if not old and not new:
        return ["the data are neither the old nor the new"]
    if state == "completed":
        return [] if new else ["a silent difference: it is completed, and the data are the old"]
    return [] if old or kept or unsure(case) else [f"it is {state}, and the old data are gone"]


def unsure(case: Case) -> bool:
    """Whether nobody may come to say how a job has ended."""
    fault = case.fault
    mute = fault.victim is Victim.STATE and case.face is Face.COMMAND
    return mute or (fault.victim is Victim.RUNNER and fault.what == "kill")


def backup(objects: checker.Objects, place: str, key: bytes | None) -> dict[str, Any]:
    """The manifest of a completed backup, and of it alone, whose whole chain is there; raises Wrong."""
    chain = checker.chain_of(objects, place, key)
    found: dict[str, Any] = json.loads(objects[f"{chain[-1]}/manifest.json"])
    return found
