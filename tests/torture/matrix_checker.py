"""The judge of the matrix: reads a store's objects and a host's files by itself, as docs/format.rst has them.

It imports nothing of guestagent, on purpose: what the code under test believes must not count.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Objects = Mapping[str, bytes]
"""What lies in a store, by key; temporary files of killed puts are not among it."""

TOOL_PATIENCE = 120.0
_ENDED = {"completed", "failed", "cancelled"}
_NONCE = 12
_NOTE = 900
"""Characters of an error that a row's note must have."""


class Wrong(Exception):
    """A backup is not what the format's description promises."""


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check(true: bool, what: str) -> None:
    if not true:
        raise Wrong(what)


# -- backups


def manifest_of(objects: Objects, place: str) -> dict[str, Any] | None:
    """The manifest at ``<instance>/<id>``, proven by itself; None if there is none, and so no backup."""
    body = objects.get(f"{place}/manifest.json")
    if body is None:
        return None
    try:
        found: dict[str, Any] = json.loads(body)
    except ValueError as error:
        raise Wrong(f"{place}/manifest.json is no JSON: {error}") from error
    _check(body == _canonical(found), f"{place}/manifest.json is not canonical")
    _check(found["format"] == 1, "its format is not 1")
    _check(f"{found['instance_id']}/{found['id']}" == place, "it is another backup's")
    core = {name: value for name, value in found.items() if name != "digest"}
    _check(found["digest"] == _sha256(_canonical(core)), "its digest is wrong")
    return found


def check_whole(objects: Objects, place: str, key: bytes | None) -> dict[str, Any]:
    """The manifest of a backup every byte of which is there; raises Wrong."""
    manifest = manifest_of(objects, place)
    if manifest is None:
        raise Wrong(f"{place} has no manifest")
    for index, segment in enumerate(manifest["segments"]):
        name = f"{place}/data/{index:08d}"
        _check(segment["index"] == index, f"segment {index} of {place} has another index")
        _check(name in objects, f"{name} is missing")
        _check(len(objects[name]) == segment["stored_size"], f"{name} has another size")
        _check(_sha256(objects[name]) == segment["sha256"], f"{name} has another digest")
    for what in ("raw", "stored"):
        total = sum(segment[f"{what}_size"] for segment in manifest["segments"])
        _check(manifest["sizes"][what] == total, f"the {what} size of {place} is not the sum")
    wanted = {f"{place}/data/{index:08d}" for index in range(len(manifest["segments"]))} | {f"{place}/manifest.json"}
    wanted |= {f"{place}/key.json", f"{place}/key.next.json"} if manifest["encryption"] else set()
    more = sorted(name for name in objects if name.startswith(f"{place}/") and name not in wanted)
    _check(not more, f"{place} has objects that its manifest does not know: {more}")
    _check((manifest["encryption"] is not None) == (key is not None), f"{place} is encrypted, or not, against our will")
    if key is not None:
        _data_key(objects, place, key)
    return manifest


def chain_of(objects: Objects, place: str, key: bytes | None) -> list[str]:
    """The places of a backup's whole chain, base first, each of them whole; raises Wrong."""
    manifest = check_whole(objects, place, key)
    if manifest["parent"] is None:
        _check(manifest["type"] == "full" and manifest["lsn"]["from"] == 0, f"{place} has no parent and is no full")
        return [place]
    parent = f"{manifest['instance_id']}/{manifest['parent']['id']}"
    _check(parent != place, f"{place} is its own parent")
    above = chain_of(objects, parent, key)
    body = objects[f"{parent}/manifest.json"]
    _check(manifest["parent"]["checksum"] == _sha256(body), f"{place} has another parent in mind than {parent}")
    _check(manifest["lsn"]["from"] == json.loads(body)["lsn"]["to"], f"{place} does not continue {parent}")
    return [*above, place]


def _derived(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key)


def _data_key(objects: Objects, place: str, key: bytes) -> bytes:
    """What key.json wraps, or else its spare: whichever opens, and to a data key that made the manifest's MAC."""
    try:
        return _opened(objects, place, "key.json", key)
    except Wrong:
        if f"{place}/key.next.json" not in objects:
            raise
    return _opened(objects, place, "key.next.json", key)


def _opened(objects: Objects, place: str, name: str, key: bytes) -> bytes:
    _check(f"{place}/{name}" in objects, f"{place}/{name} is missing")
    instance, _, backup = place.partition("/")
    try:
        wrapped = base64.b64decode(json.loads(objects[f"{place}/{name}"])["wrapped"])
    except ValueError as error:
        raise Wrong(f"{place}/{name} cannot be read: {error}") from error
    bound = {"backup_id": backup, "instance_id": instance, "purpose": "guestagent data key 1"}
    try:
        cipher = AESGCM(_derived(key, b"guestagent wrap 1"))
        data_key = cipher.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _canonical(bound))
    except InvalidTag as error:
        raise Wrong(f"{place}/{name} does not open") from error
    _check_mac(json.loads(objects[f"{place}/manifest.json"]), data_key)
    return data_key


def opened_by(objects: Objects, place: str, *keys: bytes) -> int | None:
    """Which of some keys opens a backup, by its number; None if none does, and so the backup is lost."""
    for number, key in enumerate(keys):
        try:
            check_whole(objects, place, key)
        except Wrong:
            continue
        return number
    return None


def _check_mac(manifest: Mapping[str, Any], data_key: bytes) -> None:
    core = {name: value for name, value in manifest.items() if name not in ("digest", "mac")}
    mac = HMAC(_derived(data_key, b"guestagent manifest 1"), SHA256())
    mac.update(_sha256(_canonical(core)).encode())
    _check(mac.finalize().hex() == manifest["mac"], f"the MAC of {manifest['id']} is wrong")


# -- a restore by hand


def by_hand(objects: Objects, chain: Sequence[str], target: Path, key: bytes | None) -> Path:
    """Restore a chain with standard tools alone; gives the prepared directory."""
    directories = []
    for number, place in enumerate(chain):
        directory = target / f"link-{number}"
        directory.mkdir(parents=True)
        _run(["mbstream", "-x", "-C", str(directory)], stream_of(objects, place, key))
        directories.append(directory)
    base = directories[0]
    for link in (None, *directories[1:]):
        argv = ["mariabackup", f"--defaults-file={base / 'backup-my.cnf'}", "--prepare", f"--target-dir={base}"]
        said = _run([*argv, *([f"--incremental-dir={link}"] if link else [])])
        _check("completed OK!" in said, f"a prepare did not complete: {said[-500:]}")
    return base


def stream_of(objects: Objects, place: str, key: bytes | None) -> bytes:
    """The tool's stream: segments decrypted, decompressed by the zstd command, joined."""
    manifest = check_whole(objects, place, key)
    last = len(manifest["segments"]) - 1
    bodies = [objects[f"{place}/data/{index:08d}"] for index in range(last + 1)]
    if key is not None:
        cipher = AESGCM(_derived(_data_key(objects, place, key), b"guestagent segments 1"))
        places = [{"backup_id": manifest["id"], "index": index, "last": index == last} for index in range(last + 1)]
        bodies = [
            cipher.decrypt(index.to_bytes(_NONCE, "big"), body, _canonical(places[index]))
            for index, body in enumerate(bodies)
        ]
    stored = b"".join(bodies)
    if manifest["compression"] == "none":
        return stored
    done = subprocess.run(["zstd", "-dc"], input=stored, capture_output=True, timeout=TOOL_PATIENCE, check=False)
    _check(done.returncode == 0, f"zstd: {done.stderr.decode(errors='replace')}")
    _check(len(done.stdout) == manifest["sizes"]["raw"], f"{place} decompresses to another size")
    return done.stdout


def _run(argv: Sequence[str], stdin: bytes = b"") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=TOOL_PATIENCE, check=False)
    said = done.stderr.decode(errors="replace")
    _check(done.returncode == 0, f"{argv[0]} ended with {done.returncode}: {said[-500:]}")
    return said


# -- a host


def jobs(state_dir: Path) -> list[str]:
    """The ids of all jobs that have a record."""
    return [path.stem for path in (state_dir / "jobs").glob("*.json")]


def ended(state_dir: Path, wanted: str) -> bool:
    """Whether a job has a record, and has come to its end."""
    path = state_dir / "jobs" / f"{wanted}.json"
    return path.exists() and json.loads(path.read_bytes())["state"] in _ENDED


def letters(state_dir: Path) -> list[str]:
    """What the outbox holds that nobody has taken; what was put aside in it counts too."""
    found = []
    for path in (state_dir / "outbox").glob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # taken since it was listed; where letters are put aside
            found.append(path.read_text())
    return sorted(found)


def check_row(row: Mapping[str, Any], found: Mapping[str, Any], objects: Objects, place: str, location: str) -> None:
    """What the control plane believes of a backup must be how its job ended, and what the store holds; raises Wrong."""
    completed = found["state"] == "completed"
    state = row.get("state")
    _check(state == ("COMPLETED" if completed else "FAILED"), f"the row says {state}, the job {found['state']}")
    _check(row.get("success") is completed, f"the row says that success is {row.get('success')}")
    kind = "incremental" if found["request"]["parent"] else "full"
    _check(row.get("backup_type") == kind, f"the row says that a backup is {row.get('backup_type')} which is {kind}")
    size = row.get("size")
    _check(isinstance(size, int | float) and size >= 0, f"the row has a size of {size}")
    if completed:
        stored = json.loads(objects[f"{place}/manifest.json"])["sizes"]["stored"]
        known = _sha256(objects[f"{place}/manifest.json"]), location, round(stored / 2**30, 4)
        told = row.get("checksum"), row.get("location"), size
        _check(told == known, f"the row says {told}, and what is stored is {known}")
    else:
        _check(not {"checksum", "location"} & set(row), "the row of a failed backup says where it is")
        why = str(row.get("note"))
        _check(why.startswith(found["failure"]["what"][:_NOTE]), f"the row does not say why, but: {why}")


def job(state_dir: Path, wanted: str) -> dict[str, Any]:
    """The record of a job that has ended, and says how; raises Wrong."""
    path = state_dir / "jobs" / f"{wanted}.json"
    _check(path.exists(), f"job {wanted} has no record")
    found: dict[str, Any] = json.loads(path.read_bytes())
    _check(found["state"] in _ENDED, f"job {wanted} is stuck: {found['state']}")
    if found["state"] == "failed":
        said = found["failure"]["what"] + found["failure"]["hint"]
        _check(bool(found["failure"]["what"]) and said.isprintable(), f"job {wanted} does not say why in one line")
    return found


def marked(state_dir: Path) -> set[str]:
    """The places, ``<instance>/<id>``, whose leftovers a sweep will look for."""
    marks = (path for path in (state_dir / "unfinished").glob("*") if path.is_file())
    return {"/".join(mark.read_text().rsplit("/", 2)[1:]) for mark in marks}


def given_up(state_dir: Path) -> set[str]:
    """Those of them that no sweep looks for any more, since the store did not allow it: a person has been told."""
    marks = (path for path in (state_dir / "unfinished").glob("*.denied"))
    return {"/".join(mark.read_text().rsplit("/", 2)[1:]) for mark in marks}


def rubbish(objects: Objects) -> set[str]:
    """The places at which objects lie without a manifest."""
    places = {"/".join(name.split("/")[:2]) for name in objects}
    return {place for place in places if f"{place}/manifest.json" not in objects}


def phantoms(objects: Objects, key: bytes | None) -> list[str]:
    """What is wrong with backups whose manifest lies there, and so every list shows them."""
    found = []
    for place in sorted({name.rpartition("/")[0] for name in objects if name.endswith("/manifest.json")}):
        try:
            check_whole(objects, place, key)
        except Wrong as error:
            found.append(f"{place}: {error}")
    return found


def tree(top: Path) -> dict[str, bytes]:
    """Every file below ``top``."""
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def alive(words: str) -> list[str]:
    """The commands of living processes other than ours that name ``words``."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if words in command:
                found.append(command)
    return found
