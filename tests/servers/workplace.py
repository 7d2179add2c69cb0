"""Where test servers live: directories that the server's user may pass through, and the end of those left behind.

pytest's ``tmp_path`` is closed to the server's user when root runs the tests; these are not.  A run that was killed
leaves its servers and directories; the next run ends and removes those whose maker is dead.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "ga-"
DISK = "/var/tmp"
"""Where files lie on a disk, also while those of tests are kept in memory."""
LONGEST_SOCKET = 107
"""Bytes that the kernel takes for the path of a UNIX socket."""


def server_user() -> str:
    """The user that servers run as: mysql for root, and whoever runs the tests otherwise."""
    return "mysql" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def give_to_server(path: Path) -> None:
    """Make ``path`` and all below it the server's own (nothing to do unless root runs the tests)."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{server_user()}:", str(path)], check=True, timeout=30)


def make_workplace() -> Path:
    """A new directory that the server's user may pass through, short enough for a socket; the caller removes it."""
    end_those_left_behind()
    place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_top()))
    place.chmod(0o755)
    return place


@contextmanager
def workplace() -> Iterator[Path]:
    """As make_workplace, removed at the end: where a test restores to."""
    place = make_workplace()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _top() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) < LONGEST_SOCKET // 2 else "/tmp"


@functools.cache
def end_those_left_behind() -> None:
    """Kill the servers and remove the directories of earlier runs that did not come to do it; once a run."""
    for place in Path(_top()).glob(f"{PREFIX}*-*"):
        maker = place.name.removeprefix(PREFIX).partition("-")[0]
        if maker.isdecimal() and not Path(f"/proc/{maker}").exists():
            _end_server_of(place)
            shutil.rmtree(place, ignore_errors=True)


def _end_server_of(place: Path) -> None:
    """Kill the server whose pid file lies in ``place``, if its command line names the place."""
    with suppress(OSError, ValueError):
        pid = int((place / "pid").read_text())
        if f"{place}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
