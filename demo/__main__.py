"""Tells the story of the user guide on throwaway servers, by typing the commands that a user would.

Two database hosts have an agent each, a control plane asks them for everything, and an operator looks in.
"""

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
from tests.servers.agent import Agent, local_url, serving
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace
from tests.servers.moto_s3 import make_bucket, moto_s3
from tests.servers.rabbitmq import RabbitMQ

KEY = ("demo-access-key", "demo-secret-key")
BACKUP = ("id", "name", "status", "type", "parent_id", "size", "stored_size", "raw_size", "duration")
LISTED = ("id", "name", "type", "status", "parent_id", "size", "updated")


def main() -> int:
    """Run the demo; gives the exit status, 0 only if both servers hold the same."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=main.__doc__)
    parser.add_argument("--s3", action="store_true", help="store in a local S3 server instead of in a directory")
    parser.add_argument("--rabbit", action="store_true", help="ask the agents through a local RabbitMQ, not sockets")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with ExitStack() as stack:
        place = stack.enter_context(workplace())
        url, settings = stack.enter_context(_s3()) if arguments.s3 else (f"file://{place}/backups", "")
        transport = stack.enter_context(_rabbit()) if arguments.rabbit else local_url(place)
        guests = [
            Guest(name, stack.enter_context(server), place, url, settings=settings, defaults=serving(transport))
            for name, server in (
                ("guest1", MariaDB()),
                ("guest2", MariaDB(datadir=place / "guest2", running=False)),
            )
        ]
        equal = _story(ControlPlane(place, transport), *guests, transport=transport)
    _say(f"{'Equal' if equal else 'NOT EQUAL'}, after {time.monotonic() - begun:.0f} seconds in all.")
    return 0 if equal else 1


def _story(control: ControlPlane, guest1: Guest, guest2: Guest, *, transport: str) -> bool:
    guest1.server.script(shop.SCHEMA)
    guest1.account()
    _say("guest1 is a MariaDB with a small shop on it, guest2 has none yet. Each host runs its agent.")
    with serving_guest(guest1, transport) as one, serving_guest(guest2, transport):
        _say("The control plane knows their names. May guest1 be backed up?")
        control.run("ping", "guest1", *_columns("guest_id", "version"))
        control.run("doctor", "guest1", *_columns("check", "ok", "detail"))

        _say("A full backup.")
        full = control.back_up("backup1")
        _say("Orders come in; then an incremental on the full, and after more of them an incremental on that.")
        guest1.server.script(shop.ORDERS)
        first = control.back_up("backup1.1", "--parent", full)
        guest1.server.script(shop.MORE)
        second = control.back_up("backup1.2", "--parent", first)

        _say("What there is now, as the control plane sees it and as an operator does on the host itself.")
        control.run("backup-list", "guest1", *_columns(*LISTED))
        _type(one.guest, "backup", "tree")
        _type(one.guest, "backup", "verify", second, *_columns("name", "segments", "stored_size", "verified"))
        _type(one.guest, "job", "list", *_columns("id", "kind", "state", "origin", "finished"))

        _say("guest2's agent knows nothing but the store. It restores the newest, from its id alone.")
        control.run("restore", "guest2", "--backup", second, "--start", "--wait")

        _say("Both servers, table by table.")
        return _compare(guest1.server, guest2.server)


class ControlPlane:
    """Whoever has the transport, and nothing of the hosts."""

    def __init__(self, place: Path, transport: str) -> None:
        self._config = place / "control.conf"
        self._config.write_text(f"[DEFAULT]\n{serving(transport)}")
        self._config.chmod(0o600)

    def run(self, *words: str) -> str:
        """Type a command; gives what it printed."""
        return _run("control", "guestagent-ctl", self._config, words)

    def back_up(self, name: str, *options: str) -> str:
        """Have guest1 take a backup; gives its id."""
        return _field(self.run("backup-create", "guest1", name, *options, "--wait", *_columns(*BACKUP)), "id")


@contextmanager
def serving_guest(guest: Guest, transport: str) -> Iterator[Agent]:
    """The guest's agent, started and ended as systemd does."""
    print(f"\n{guest.name}$ guestagent serve &", flush=True)
    with Agent(guest, transport) as agent:
        yield agent
        agent.terminate()


def _type(guest: Guest, *words: str) -> str:
    """Type a command on the guest's own host; gives what it printed."""
    return _run(guest.name, "guestagent", guest.config, words)


def _run(where: str, program: str, config: Path, words: tuple[str, ...]) -> str:
    """Type a command, show it and what it prints; gives its stdout.  Ends the demo if it fails."""
    command = [str(Path(sys.executable).with_name(program)), "--config-file", str(config), *words]
    print(f"\n{where}$ {program} {shlex.join(words)}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"the command failed with exit status {done.returncode}")
    return done.stdout


def _columns(*names: str) -> tuple[str, ...]:
    return tuple(f"-c={name}" for name in names)


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
def _s3() -> Iterator[tuple[str, str]]:
    """A local S3 server with a bucket; gives its URL and the configuration that leads to it."""
    with moto_s3() as url:
        make_bucket(url, "backups")
        yield (
            "s3://backups/demo",
            f"[s3]\nendpoint_url = {url}\nregion_name = us-east-1\n"
            f"access_key_id = {KEY[0]}\nsecret_access_key = {KEY[1]}\naddressing_style = path\n",
        )


@contextmanager
def _rabbit() -> Iterator[str]:
    """A local RabbitMQ; gives the URL that leads to it."""
    _say("A private RabbitMQ starts, which takes a while.")
    with RabbitMQ() as broker:
        yield broker.url(broker.vhost())


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
