"""Where a benchmark ran, and with what: figures without that are worth little."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import guestagent

GIB = 1 << 30
PATIENCE = 30
TOOLS: Mapping[str, tuple[str, ...]] = {
    "mariabackup": ("mariabackup", "--no-defaults", "--version"),
    "zstd": ("zstd", "--version"),
    "gzip": ("gzip", "--version"),
    "aws": ("aws", "--version"),
    "rclone": ("rclone", "version"),
    "s5cmd": ("s5cmd", "version"),
}
PACKAGES = ("zstandard", "boto3", "botocore", "cryptography")
ROOT = Path(__file__).resolve().parents[1]
_COMMIT = re.compile(r"[0-9a-f]+(-dirty)?")
_NUMBER = re.compile(r"\d+\.\d+[\w.-]*")


def facts(place: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Machine and versions; ``place`` is where the data lies."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "filesystem": _printed(("findmnt", "-n", "-o", "FSTYPE", "-T", str(place)), environment),
        "kernel": platform.release(),
        "versions": versions(environment),
    }


def versions(environment: Mapping[str, str]) -> dict[str, str]:
    """Versions of all that takes part; of the tools that are there."""
    tools = {name: _number(_printed(argv, environment)) for name, argv in TOOLS.items()}
    return {
        "guestagent": guestagent.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **{name: number for name, number in tools.items() if number},
    }


def _printed(argv: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """What a command prints, wherever it does; nothing if it is not there."""
    try:
        done = subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _commit() -> str:
    """The commit that this is, with a word if files differ from it; nothing where it is not a repository."""
    text = _printed(("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"), os.environ)
    return text if _COMMIT.fullmatch(text) else ""


def _number(text: str) -> str:
    """The first version that a text names."""
    found = _NUMBER.search(text)
    return found[0] if found else ""


def _field(file: Path, name: str) -> str:
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), platform.machine())
