"""Socket units of systemd: while one listens, any client's connection starts a server, and not as quietly as we do."""

from __future__ import annotations

import shutil
from pathlib import Path

from guestagent.streams.process import output_of

BOOTED = Path("/run/systemd/system")
"""What is there where systemd runs the host (sd_booted(3))."""
UNITS = ("mariadb.socket", "mariadb-extra.socket", "mysql.socket")
_SHOW = ("systemctl", "show", "--property=Id,ActiveState,UnitFileState")


def is_systemds() -> bool:
    """Whether systemd runs this host, and can be asked."""
    return BOOTED.is_dir() and shutil.which("systemctl") is not None


def listening() -> list[str]:
    """The units that listen, or will after the next boot; raises ToolError where systemd does not tell."""
    blocks = output_of([*_SHOW, *UNITS]).strip().split("\n\n")
    found = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks)
    return [
        unit["Id"]
        for unit in found
        if unit.get("ActiveState") in ("active", "activating")
        or unit.get("UnitFileState") in ("enabled", "enabled-runtime")
    ]
