"""docs/format.rst is true: its commands, as they stand there, bring a chain back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.integration.conftest import MakeGuest
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, give_to_server

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.rst"


def commands() -> str:
    """The shell commands of the chapter on restoring by hand."""
    block = re.search(r"\.\. code-block:: sh\n\n((?:    .*\n|\n)+)", DOCUMENT.read_text(encoding="utf-8"))
    assert block is not None
    return re.sub(r"^    ", "", block[1], flags=re.MULTILINE)


def test_the_documented_commands_restore_a_chain_by_hand(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t SELECT seq AS id, MD5(seq) AS v FROM seq_1_to_5000;"
    )
    full = guest.back_up()
    guest.server.script("CREATE TABLE d.my ENGINE=MyISAM SELECT * FROM d.t LIMIT 100; DELETE FROM d.t WHERE id < 99;")
    first = guest.back_up(full)
    guest.server.script("UPDATE d.t SET v = 'x' WHERE id % 3 = 0;")
    second = guest.back_up(first)

    target = guest.place / "by-hand"
    target.mkdir(mode=0o755)
    links = {"full": full, "first": first, "second": second}
    given = {name: f"{link.manifest.instance_id}/{link.id}" for name, link in links.items()}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands()],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "store": f"{guest.place}/store", "target": str(target), **given},
        capture_output=True,
        timeout=120,
        check=True,
    )
    give_to_server(target / "base")
    with MariaDB(datadir=target / "base") as restored:
        assert restored.content() == guest.server.content()
