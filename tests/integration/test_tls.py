"""TLS with an authority of one's own: to RabbitMQ and to S3, both sides verified; what is wrong is told in one line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection  # type: ignore[attr-defined]
from kombu.exceptions import OperationalError

from guestagent.jobs.record import State
from guestagent.tls import Files, opened
from guestagent.transport.tls import OPTIONS, Wanted
from tests.integration.conftest import MakeGuest
from tests.integration.running import wait_until
from tests.integration.serving import new_id
from tests.servers.agent import Agent, serving
from tests.servers.authority import Authority, Pair, encrypted, server_context
from tests.servers.guest import Guest
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY, make_bucket, moto_s3
from tests.servers.ports import free_ports
from tests.servers.rabbitmq import RabbitMQ, Tls
from tests.servers.tls_front import TlsFront

pytestmark = pytest.mark.integration

HERE, ELSEWHERE = "127.0.0.1", "localhost"
"""The host that certificates are for, and another name of it, which they are not for."""
SOON = 40.0
"""Seconds in which what cannot get better is refused, a process's start included."""
OUR_FAULT, WRONG_OPTION, STORE = 1, 2, 8
"""Exit statuses."""
CTL = "import sys; from guestagent.cli.control import main; sys.exit(main())"

_number = itertools.count(1)


@dataclass(frozen=True)
class Hall:
    """Who signs, and what is shown."""

    ours: Authority
    theirs: Authority
    server: Pair
    client: Pair

    @property
    def ca(self) -> Path:
        return self.ours.certificate


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    place = tmp_path_factory.mktemp("authorities")
    ours, theirs = Authority(place / "ours"), Authority(place / "theirs")
    return Hall(ours, theirs, ours.server(HERE), ours.client("guest1"))


@pytest.fixture(scope="module")
def broker(hall: Hall) -> Iterator[RabbitMQ]:
    """One that demands certificates at its TLS port, and has a plain one as well."""
    with RabbitMQ(tls=Tls(hall.server, hall.ca, demand=True)) as running:
        yield running


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """The port of a store that speaks no TLS."""
    with moto_s3() as url:
        make_bucket(url, "backups")
        yield int(url.rpartition(":")[2])


def rabbit(ca: Path | None = None, pair: Pair | None = None, **more: object) -> str:
    """Lines of a configuration for TLS with RabbitMQ."""
    given = {"ssl": "true", "ssl_ca_file": ca} | more
    if pair is not None:
        given |= {"ssl_cert_file": pair.certificate, "ssl_key_file": pair.key}
    return _section("oslo_messaging_rabbit", given)


def s3(url: str, ca: Path | None = None, pair: Pair | None = None, **more: object) -> str:
    """Lines of a configuration for a store at ``url``."""
    given = {"endpoint_url": url, "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY, "ca_bundle": ca}
    if pair is not None:
        given |= {"client_cert": pair.certificate, "client_key": pair.key}
    return _section("s3", given | more)


def _section(name: str, given: dict[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{option} = {value}\n" for option, value in given.items() if value is not None)


def ctl(guest: Guest, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Type ``guestagent-ctl``."""
    argv = [sys.executable, "-c", CTL, "--config-file", str(guest.config), "--timeout", "20", *words]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, env=environment and {**environment}
    )


def one_line(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """It failed with ``status``, and its only line says so, with what to look at."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert SECRET_KEY not in done.stderr


# -- the whole story


def test_an_agent_and_its_store_behind_tls_with_certificates_on_both_sides(
    make_guest: MakeGuest, hall: Hall, broker: RabbitMQ, moto: int
) -> None:
    url = broker.tls_url(broker.vhost())
    with TlsFront(moto, server_context(hall.server, clients=hall.ca)) as front:
        settings = rabbit(hall.ca, hall.client) + s3(front.url(), hall.ca, hall.client)
        guest = make_guest(url="s3://backups/whole", defaults=serving(url), settings=settings)
        with Agent(guest, url) as agent:
            assert ctl(guest, "ping", guest.name).returncode == 0
            with agent.client() as client:
                job = agent.wait_for(client.create(name="behind TLS", id=new_id())["id"])
            assert job.state is State.COMPLETED, job.failure
            assert [row["id"] for row in guest.json("backup", "list")] == [job.id]
            findings = {row["check"]: row["ok"] for row in guest.json("doctor")}
            assert (findings["store"], findings["broker"]) == ("yes", "yes")
            assert guest.command("backup", "verify", job.id).returncode == 0
            assert agent.terminate() == 0
        assert front.taken > 0


# -- RabbitMQ, as guestagent-ctl sees it


@pytest.fixture
def empty(make_guest: MakeGuest) -> MakeGuest:
    """Makes guests without a server."""

    def make(name: str = "", **options: str) -> Guest:
        return make_guest(name or f"guest{next(_number)}", empty=True, **options)

    return make


def ping(empty: MakeGuest, url: str, settings: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Ask for an agent that is not there; status 4 says that the broker was."""
    guest = empty(defaults=serving(url), settings=settings)
    began = time.monotonic()
    done = ctl(guest, "ping", "nobody", **more)  # type: ignore[arg-type]
    assert time.monotonic() - began < SOON
    return done


def test_a_broker_that_is_whom_it_should_be(empty: MakeGuest, hall: Hall, broker: RabbitMQ) -> None:
    done = ping(empty, broker.tls_url(broker.vhost()), rabbit(hall.ca, hall.client))
    one_line(done, 4, "no agent of nobody is listening")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (HERE, ["is not signed by an authority in", "theirs/ca.pem", "[oslo_messaging_rabbit] ssl_ca_file"]),
        (ELSEWHERE, ["is not signed by an authority in", "theirs/ca.pem"]),
    ],
)
def test_a_broker_of_another_authority(
    empty: MakeGuest, hall: Hall, broker: RabbitMQ, host: str, words: list[str]
) -> None:
    url = broker.tls_url(broker.vhost(), host=host)
    one_line(ping(empty, url, rabbit(hall.theirs.certificate, hall.client)), OUR_FAULT, *words)


@pytest.mark.parametrize("more", [{}, {"ssl_enforce_hostname_verification": "false"}, {"ssl_version": "SSLv23"}])
def test_a_broker_of_another_name(empty: MakeGuest, hall: Hall, broker: RabbitMQ, more: dict[str, str]) -> None:
    done = ping(empty, broker.tls_url(broker.vhost(), host=ELSEWHERE), rabbit(hall.ca, hall.client, **more))
    one_line(done, OUR_FAULT, f"of {ELSEWHERE}:{broker.tls_port} is for another name", "[DEFAULT] transport_url")


@pytest.mark.parametrize(
    ("host", "more", "words"),
    [
        (HERE, {}, "no agent of nobody"),
        (HERE, {"ssl_version": "SSLv23"}, "no agent of nobody"),
        (ELSEWHERE, {}, "is for another name"),
        (ELSEWHERE, {"ssl_version": "SSLv23"}, "is for another name"),
    ],
)
def test_without_a_file_the_systems_authorities_count_and_names_all_the_same(
    empty: MakeGuest, hall: Hall, broker: RabbitMQ, host: str, more: dict[str, str], words: str
) -> None:
    url = broker.tls_url(broker.vhost(), host=host)
    environment = {"SSL_CERT_FILE": str(hall.ca), "SSL_CERT_DIR": str(hall.ca.parent / "none")}
    done = ping(empty, url, rabbit(None, hall.client, **more), environment=environment)
    one_line(done, 4 if host == HERE else OUR_FAULT, words)


@pytest.mark.parametrize("more", [{}, {"ssl_version": "SSLv23"}])
def test_without_a_file_a_stranger_is_refused(
    empty: MakeGuest, hall: Hall, broker: RabbitMQ, more: dict[str, str]
) -> None:
    done = ping(empty, broker.tls_url(broker.vhost()), rabbit(None, hall.client, **more))
    one_line(done, OUR_FAULT, "is not signed by an authority that this system knows", "ssl_ca_file")


def test_a_brokers_certificate_that_has_expired(empty: MakeGuest, hall: Hall, broker: RabbitMQ) -> None:
    with TlsFront(broker.port, server_context(hall.ours.server(HERE, expired=True))) as front:
        url = broker.tls_url(broker.vhost(), port=front.port)
        one_line(ping(empty, url, rabbit(hall.ca)), OUR_FAULT, f"of {HERE}:{front.port} has expired", "renew it there")
        told = empty(defaults=serving(url), settings=rabbit(hall.ca)).command("doctor", "-f", "json")
    (found,) = (row for row in json.loads(told.stdout) if row["check"] == "broker")
    assert f"the certificate of {HERE}:{front.port} has expired" in found["detail"]
    assert (found["ok"], found["remedy"]) == ("no", "renew it there, or set this host's clock")
    assert told.stderr.count("\n") == 1, told.stderr


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("nobody", ["asks for a client certificate", "ssl_cert_file"]),
        ("expired", ["refuses our certificate", "certificate expired", "renew [oslo_messaging_rabbit] ssl_cert_file"]),
        ("stranger", ["refuses our certificate", "unknown ca", "ssl_cert_file"]),
    ],
)
def test_a_broker_that_demands_another_certificate(
    empty: MakeGuest, hall: Hall, broker: RabbitMQ, who: str, words: list[str]
) -> None:
    pair = {"nobody": None, "expired": hall.ours.client("a", expired=True), "stranger": hall.theirs.client("a")}[who]
    one_line(ping(empty, broker.tls_url(broker.vhost()), rabbit(hall.ca, pair)), OUR_FAULT, *words)


def test_tls_to_a_plain_port_of_the_broker(empty: MakeGuest, hall: Hall, broker: RabbitMQ) -> None:
    done = ping(empty, broker.url(broker.vhost()), rabbit(hall.ca, hall.client))
    one_line(done, OUR_FAULT, f"{HERE}:{broker.port} does not speak TLS", "[DEFAULT] transport_url")


def test_plain_text_to_a_tls_port_of_the_broker(empty: MakeGuest, broker: RabbitMQ) -> None:
    done = ping(empty, broker.tls_url(broker.vhost()), "")
    one_line(done, OUR_FAULT, f"{HERE}:{broker.tls_port} speaks TLS", "set [oslo_messaging_rabbit] ssl")


def test_files_that_do_not_do_are_told_at_once(empty: MakeGuest, hall: Hall, broker: RabbitMQ, place: Path) -> None:
    locked = encrypted(hall.client.key, b"never-to-be-asked-for")
    noise = place / "noise.pem"
    noise.write_text("no certificate\n")
    url = broker.tls_url(broker.vhost())
    wrong = [
        (rabbit(place / "none.pem"), ["ssl_ca_file: no file"]),
        (rabbit(noise), ["ssl_ca_file: no certificate in", "noise.pem"]),
        (rabbit(hall.ca, Pair(noise, hall.client.key, noise)), ["ssl_cert_file: no certificate with its key in"]),
        (rabbit(hall.ca, Pair(hall.client.certificate, hall.server.key, noise)), ["the certificate was made for"]),
        (rabbit(hall.ca, Pair(hall.client.certificate, locked, noise)), ["the key without a password"]),
        (rabbit(hall.ca, ssl_key_file=hall.client.key), ["ssl_key_file is set and", "ssl_cert_file is not"]),
    ]
    for settings, words in wrong:
        one_line(ping(empty, url, settings), WRONG_OPTION, *words)
    served = empty(defaults=serving(url), settings=wrong[0][0]).command("serve")
    assert served.returncode == WRONG_OPTION
    assert "ssl_ca_file: no file" in served.stderr


@pytest.mark.parametrize(
    ("host", "outcome"),
    [
        ("127.0.0.2", nullcontext()),
        (HERE, pytest.raises(OperationalError, match=r"is not valid for '127\.0\.0\.2'")),
    ],
)
def test_a_second_host_is_verified_by_its_own_name(
    hall: Hall, broker: RabbitMQ, host: str, outcome: AbstractContextManager[object]
) -> None:
    """kombu goes from the first, which is down, to the second; it would keep the first one's name for it."""
    wanted = Wanted(opened(Files(ca=str(hall.ca)), OPTIONS))
    kombu: Any = Connection
    with TlsFront(broker.port, server_context(hall.ours.server(host)), host="127.0.0.2") as front:
        hosts = f"amqp://guest:guest@{HERE}:{free_ports(1)[0]};amqp://guest:guest@127.0.0.2:{front.port}"
        with kombu(hosts, ssl=wanted.parameters(), failover_strategy="round-robin") as connection, outcome:
            connection.ensure_connection(max_retries=1, interval_start=0)
        assert front.taken == (host != HERE)


# -- RabbitMQ, as the agent sees it


def test_an_agent_says_what_is_wrong_and_goes_on_until_it_is_mended(
    empty: MakeGuest, hall: Hall, broker: RabbitMQ
) -> None:
    with TlsFront(broker.port, server_context(hall.ours.server(HERE, expired=True))) as front:
        url = broker.tls_url(broker.vhost(), port=front.port)
        guest = empty(defaults=serving(url), settings=rabbit(hall.ca))
        with Agent(guest, url) as agent:
            words = f"no connection to the broker: the certificate of {HERE}:{front.port} has expired; renew it there"
            wait_until(lambda: words in agent.log, "the agent says what is wrong")
            assert "Traceback" not in agent.log
            assert front.taken == 0
            front.context = server_context(hall.server)
            wait_until(lambda: f"listening on guestagent.{guest.name}" in agent.log, "the agent listens", limit=60)
            assert ctl(guest, "ping", guest.name).returncode == 0
            assert agent.terminate() == 0


# -- S3


def refused_by_the_store(guest: Guest, status: int, *words: str) -> None:
    """Both the listing and the doctor tell it, soon."""
    began = time.monotonic()
    one_line(guest.command("backup", "list"), status, *words)
    assert time.monotonic() - began < SOON
    told = guest.command("doctor", "-f", "json")
    if status != STORE:
        one_line(told, status, *words)
        return
    (store,) = (row for row in json.loads(told.stdout) if row["check"] == "store")
    assert (told.returncode, store["ok"]) == (OUR_FAULT, "no")
    for word in words:
        assert word in f"{store['detail']}; {store['remedy']}"


@pytest.mark.parametrize(
    ("ca", "host", "words"),
    [
        ("ours", HERE, []),
        ("theirs", HERE, ["is not signed by an authority in", "set [s3] ca_bundle"]),
        ("", HERE, ["is not signed by an authority that this system knows", "set [s3] ca_bundle"]),
        ("ours", ELSEWHERE, ["is for another name", "[s3] endpoint_url"]),
    ],
)
def test_a_store_and_its_authority(
    empty: MakeGuest, hall: Hall, moto: int, ca: str, host: str, words: list[str]
) -> None:
    known = {"ours": hall.ca, "theirs": hall.theirs.certificate, "": None}[ca]
    with TlsFront(moto, server_context(hall.server)) as front:
        guest = empty(url="s3://backups/a", settings=s3(front.url(host), known))
        if words:
            refused_by_the_store(guest, STORE, f"{host}:{front.port}", *words)
            assert front.taken == 0
        else:
            assert guest.json("backup", "list") == []


def test_a_stores_certificate_that_has_expired(empty: MakeGuest, hall: Hall, moto: int) -> None:
    with TlsFront(moto, server_context(hall.ours.server(HERE, expired=True))) as front:
        guest = empty(url="s3://backups/a", settings=s3(front.url(), hall.ca))
        refused_by_the_store(guest, STORE, f"the certificate of {HERE}:{front.port} has expired")


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("nobody", ["asks for a client certificate", "set [s3] client_cert"]),
        ("expired", ["refuses our certificate", "certificate expired", "renew [s3] client_cert"]),
        ("stranger", ["refuses our certificate", "unknown ca", "[s3] client_cert"]),
        ("one file", []),
    ],
)
def test_a_store_that_demands_a_certificate(
    empty: MakeGuest, hall: Hall, moto: int, who: str, words: list[str]
) -> None:
    pairs = {"expired": hall.ours.client("a", expired=True), "stranger": hall.theirs.client("a")}
    more = {"client_cert": hall.client.both} if who == "one file" else {}
    with TlsFront(moto, server_context(hall.server, clients=hall.ca)) as front:
        guest = empty(url="s3://backups/a", settings=s3(front.url(), hall.ca, pairs.get(who), **more))
        if words:
            refused_by_the_store(guest, STORE, f"{HERE}:{front.port}", *words)
        else:
            assert guest.json("backup", "list") == []


def test_tls_to_a_plain_store_and_plain_text_to_one_that_speaks_tls(empty: MakeGuest, hall: Hall, moto: int) -> None:
    guest = empty(url="s3://backups/a", settings=s3(f"https://{HERE}:{moto}", hall.ca))
    refused_by_the_store(guest, STORE, f"{HERE}:{moto} does not speak TLS", "[s3] endpoint_url")
    with TlsFront(moto, server_context(hall.server)) as front:
        guest = empty(url="s3://backups/a", settings=s3(front.url().replace("https", "http"), hall.ca))
        refused_by_the_store(guest, STORE, f"{HERE}:{front.port} speaks TLS", "begin [s3] endpoint_url with https://")


def test_files_for_the_store_that_do_not_do_are_told_at_once(empty: MakeGuest, hall: Hall, place: Path) -> None:
    url = f"https://{HERE}:1"
    noise = place / "noise.pem"
    noise.write_text("no certificate\n")
    wrong = [
        (s3(url, place / "none.pem"), "[s3] ca_bundle: no file"),
        (s3(url, noise), "[s3] ca_bundle: no certificate in"),
        (s3(url, hall.ca, client_cert=noise), "[s3] client_cert: no certificate with its key in"),
        (s3(url, hall.ca, client_cert=hall.client.certificate), "no certificate with its key in"),
        (s3(url, hall.ca, client_key=hall.client.key), "[s3] client_key is set and [s3] client_cert is not"),
    ]
    for settings, words in wrong:
        one_line(empty(url="s3://backups/a", settings=settings).command("backup", "list"), WRONG_OPTION, words)
