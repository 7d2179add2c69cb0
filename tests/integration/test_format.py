"""docs/format.rst is true: its commands, as they stand there, bring a chain back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from guestagent.keys.file import generate
from tests.integration.conftest import MakeGuest
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, give_to_server

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.rst"


def block(language: str) -> str:
    """The code of that language in the chapter on restoring by hand."""
    found = re.search(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", DOCUMENT.read_text(encoding="utf-8"))
    assert found is not None
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)


def chain(guest: Guest) -> dict[str, str]:
    """A full and two incrementals; gives where each lies, by the names that the document has for them."""
    guest.server.script(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t SELECT seq AS id, MD5(seq) AS v FROM seq_1_to_5000;"
    )
    full = guest.back_up()
    guest.server.script("CREATE TABLE d.my ENGINE=MyISAM SELECT * FROM d.t LIMIT 100; DELETE FROM d.t WHERE id < 99;")
    first = guest.back_up(full)
    guest.server.script("UPDATE d.t SET v = 'x' WHERE id % 3 = 0;")
    second = guest.back_up(first)
    links = {"full": full, "first": first, "second": second}
    return {name: f"{link.manifest.instance_id}/{link.id}" for name, link in links.items()}


def by_hand(guest: Guest, store: Path, links: dict[str, str]) -> None:
    """Restore with the document's commands; what comes back is what was there."""
    target = guest.place / "by-hand"
    target.mkdir(mode=0o755)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("sh")],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "store": str(store), "target": str(target), **links},
        capture_output=True,
        timeout=120,
        check=True,
    )
    give_to_server(target / "base")
    with MariaDB(datadir=target / "base") as restored:
        assert restored.content() == guest.server.content()


def test_the_documented_commands_restore_a_chain_by_hand(guest: Guest) -> None:
    by_hand(guest, guest.place / "store", chain(guest))


def test_a_stranger_decrypts_a_chain_with_the_key_and_the_document(place: Path, make_guest: MakeGuest) -> None:
    key_file = place / "key"
    generate(key_file)
    guest = make_guest(settings=f"[encryption]\nkey_file = {key_file}\n")
    links = chain(guest)
    plain = place / "plain"
    for link in links.values():
        subprocess.run(
            [sys.executable, "-I", "-c", block("python"), f"{place}/store", link, str(key_file), str(plain)],
            timeout=60,
            check=True,
        )
    by_hand(guest, plain, links)
