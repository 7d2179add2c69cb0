"""Tells the story of the user guide on throwaway servers, by typing the commands that a user would."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo import shop
from tests.servers.mariadb import MariaDB, server_user, workplace
from tests.servers.moto_s3 import make_bucket, moto_s3

PASSWORD = "demo-password"
KEY = ("demo-access-key", "demo-secret-key")


def main() -> int:
    """Run the demo; gives the exit status, 0 only if both servers hold the same."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=main.__doc__)
    parser.add_argument("--s3", action="store_true", help="store in a local S3 server instead of in a directory")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with ExitStack() as stack:
        place = stack.enter_context(workplace())
        storage = stack.enter_context(_s3()) if arguments.s3 else f"[storage]\nurl = file://{place}/backups\n"
        guest1 = stack.enter_context(MariaDB())
        guest2 = stack.enter_context(MariaDB(datadir=place / "guest2", running=False))
        equal = _story(place, storage, guest1, guest2)
    _say(f"{'Equal' if equal else 'NOT EQUAL'}, after {time.monotonic() - begun:.0f} seconds in all.")
    return 0 if equal else 1


def _story(place: Path, storage: str, guest1: MariaDB, guest2: MariaDB) -> bool:
    guest1.script(shop.SCHEMA)
    guest1.backup_account("backup", PASSWORD)
    one = Guest("guest1", guest1, place, storage)
    two = Guest("guest2", guest2, place, storage)

    _say("guest1 is a MariaDB with a small shop on it. May we back it up?")
    one.run("doctor", "-c", "check", "-c", "ok", "-c", "detail")

    _say("A full backup.")
    full = one.back_up("backup1")
    _say("Orders come in; then an incremental on the full, and after more of them an incremental on that.")
    guest1.script(shop.ORDERS)
    first = one.back_up("backup1.1", "--parent", full)
    guest1.script(shop.MORE)
    second = one.back_up("backup1.2", "--parent", first)

    _say("What there is now.")
    one.run("backup", "list", "-c", "id", "-c", "name", "-c", "type", "-c", "status", "-c", "parent_id", "-c", "size")
    one.run("backup", "tree")
    one.run("backup", "verify", second, "-c", "name", "-c", "segments", "-c", "stored_size", "-c", "verified")

    _say("guest2 knows nothing but the store. It restores the newest, from its id alone.")
    two.run("restore", second, "--plan", "-c", "links", "-c", "download", "-c", "space_needed", "-c", "engine")
    two.run("restore", second, "--start")

    _say("Both servers, table by table.")
    return _compare(guest1, guest2)


class Guest:
    """One server with its agent's configuration, and the commands that one types there."""

    def __init__(self, name: str, server: MariaDB, place: Path, storage: str) -> None:
        self._name = name
        self._config = place / f"{name}.conf"
        self._config.write_text(
            f"[DEFAULT]\nguest_id = {name}\nstate_dir = {place}/{name}-state\n\n"
            f"[database]\nsocket = {server.socket}\nuser = backup\npassword = {PASSWORD}\n"
            f"datadir = {server.datadir}\nos_user = {server_user()}\n"
            f"start_command = {server.start_script()}\nstop_command = {server.stop_script()}\n\n{storage}"
        )
        self._config.chmod(0o600)

    def run(self, *words: str) -> str:
        """Type a command, show it and what it prints; gives its stdout.  Ends the demo if it fails."""
        command = [str(Path(sys.executable).with_name("guestagent")), "--config-file", str(self._config), *words]
        print(f"\n{self._name}$ guestagent {shlex.join(words)}", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            sys.exit(f"the command failed with exit status {done.returncode}")
        return done.stdout

    def back_up(self, name: str, *options: str) -> str:
        """Take a backup; gives its id."""
        columns = ("id", "name", "status", "type", "parent_id", "size", "stored_size", "raw_size", "duration")
        printed = self.run("backup", "create", name, *options, *(f"-c={column}" for column in columns))
        return _field(printed, "id")


def _field(table: str, name: str) -> str:
    rows = (line.strip("| ").split("|", 1) for line in table.splitlines() if line.startswith("| "))
    return next(value.strip() for field, value in rows if field.strip() == name)


def _compare(guest1: MariaDB, guest2: MariaDB) -> bool:
    before, after = guest1.content(), guest2.content()
    checksums = guest1.checksums()
    print(f"\n{'table':40} {'guest1':>12} {'guest2':>12}")
    for table in checksums:
        print(f"{table:40} {before[table]:>12} {after.get(table, 'missing'):>12}")
    print(f"{len(before) - len(checksums)} definitions of schemas, tables, views, triggers, routines and events")
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            print(f"differs: {name}\n  guest1: {before.get(name)}\n  guest2: {after.get(name)}")
    return before == after


@contextmanager
def _s3() -> Iterator[str]:
    """A local S3 server with a bucket; gives the configuration that leads to it."""
    with moto_s3() as url:
        make_bucket(url, "backups")
        yield (
            f"[storage]\nurl = s3://backups/demo\n\n[s3]\nendpoint_url = {url}\nregion_name = us-east-1\n"
            f"access_key_id = {KEY[0]}\nsecret_access_key = {KEY[1]}\naddressing_style = path\n"
        )


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
