"""A private, real RabbitMQ: the broker that a control plane talks through.

Everything that it makes lies in a workplace of its own: the cookie, the data, the logs.  It listens on free ports of
127.0.0.1, never uses more than one CPU, and waits without spinning.  Its port mapper (epmd) is a child of ours as
well, so that none stays behind.  Every wait is bounded, and an error carries the end of the broker's log.

    with RabbitMQ() as broker:
        url = broker.url(broker.vhost())         # a vhost for each test
        broker.kill()                            # an outage: kill -9 ...
        broker.start()                           # ... and the same data again

    with RabbitMQ(tls=Tls(pair, authority)) as broker:    # a second listener, which speaks TLS
        url = broker.tls_url(broker.vhost())
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.authority import Pair
from tests.servers.ports import free_ports, listens
from tests.servers.workplace import make_workplace

PATIENCE = 120.0
"""Seconds that a broker may take to start, and a command to it; it takes 5 to 20."""
STOP_PATIENCE = 30.0
USER = PASSWORD = "guest"
"""The broker's own default, which it accepts from the loopback interface alone."""

_LEASH = ("setpriv", "--pdeathsig", "KILL")
"""A test run that is killed takes its servers along."""
_BATCH = 10
"""Vhosts that are made at a time: the command takes seconds, whatever it does."""

_CONFIG = """
listeners.tcp.local = 127.0.0.1:{port}
loopback_users.guest = true
disk_free_limit.absolute = 50MB
log.file = broker.log
log.file.level = info
log.console = false
"""

_TLS = """
listeners.ssl.local = 127.0.0.1:{port}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.cacertfile = {clients}
ssl_options.verify = {verify}
ssl_options.fail_if_no_peer_cert = {demand}
"""

_NEW_VHOSTS = """
lists:foreach(fun(N) ->
    Name = iolist_to_binary(["test", integer_to_list(N)]),
    ok = rabbit_vhost:add(Name, <<"tests">>),
    ok = rabbit_auth_backend_internal:set_permissions(
        <<"guest">>, Name, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
end, lists:seq({first}, {last})).
"""


@dataclass(frozen=True)
class Tls:
    """A listener that speaks TLS and shows ``pair``; with ``demand`` only to who has a certificate of ``clients``."""

    pair: Pair
    clients: Path
    demand: bool = False


def scripts() -> Path:
    """The directory of the broker's own scripts; the wrappers in /usr/sbin insist on a user and on /var."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not found:
        raise RuntimeError("there is no RabbitMQ: install rabbitmq-server")
    return found[-1].parent


class RabbitMQ:
    """One broker; a context manager that has it running inside and nothing left afterwards."""

    def __init__(self, *, tls: Tls | None = None) -> None:
        self.place = make_workplace()
        self.port, self.tls_port, self._dist_port, self._epmd_port = free_ports(4)
        self._tls = tls
        self._broker: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._made = self._given = 0

    @property
    def pid(self) -> int:
        """The running broker's process id."""
        if self._broker is None:
            raise RuntimeError("the broker does not run")
        return self._broker.pid

    def url(self, vhost: str) -> str:
        """What oslo.messaging takes as transport_url."""
        return f"rabbit://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{vhost}"

    def tls_url(self, vhost: str, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """The same for the listener that speaks TLS, by a name of the caller's choice."""
        return f"rabbit://{USER}:{PASSWORD}@{host}:{port or self.tls_port}/{vhost}"

    def vhost(self) -> str:
        """A vhost that nobody has used yet."""
        if self._given == self._made:
            self.command("eval", _NEW_VHOSTS.format(first=self._made + 1, last=self._made + _BATCH))
            self._made += _BATCH
        self._given += 1
        return f"test{self._given}"

    def command(self, *words: str) -> str:
        """What ``rabbitmqctl`` prints; an error if it fails."""
        done = subprocess.run(
            [str(scripts() / "rabbitmqctl"), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            env=self._environment(),
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {words[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def __enter__(self) -> Self:
        atexit.register(self._remove)
        try:
            self._write_state()
            self._start_epmd()
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        atexit.unregister(self._remove)

    # -- its life

    def start(self) -> None:
        """Start the broker on the data that are there, and wait until it takes connections."""
        with (self.place / "output").open("ab") as output:
            self._broker = subprocess.Popen(
                [*_LEASH, str(scripts() / "rabbitmq-server")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.place,
                env=self._environment(),
            )
        (self.place / "pid").write_text(str(self._broker.pid))
        deadline = time.monotonic() + PATIENCE
        while not all(listens(port) for port in self._listened()):
            if self._broker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"rabbitmq does not start:\n{self.log()}")
            time.sleep(0.1)

    def _listened(self) -> tuple[int, ...]:
        return (self.port,) if self._tls is None else (self.port, self.tls_port)

    def kill(self) -> None:
        """End the broker as a crash of its machine would."""
        self._end(patience=0)

    def revive(self) -> None:
        """Have it run and answer, whether it was killed, stopped or neither."""
        if self._broker is None:
            self.start()
        else:
            self._broker.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the broker as its operator would."""
        self._end(patience=STOP_PATIENCE)

    def log(self) -> str:
        """The ends of its logs."""
        texts = [path.read_text(errors="replace")[-4000:] for path in self.place.glob("log/*.log")]
        with suppress(FileNotFoundError):
            texts.append((self.place / "output").read_text(errors="replace")[-4000:])
        return "\n".join(texts)

    def _end(self, *, patience: float) -> None:
        if self._broker is not None:
            _end(self._broker, patience=patience)
            self._broker = None

    def _start_epmd(self) -> None:
        self._epmd = subprocess.Popen(
            [*_LEASH, "epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.place,
        )
        deadline = time.monotonic() + PATIENCE
        while not listens(self._epmd_port):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("epmd does not start")
            time.sleep(0.02)

    def _remove(self) -> None:
        self.kill()
        if self._epmd is not None:
            _end(self._epmd, patience=0)
            self._epmd = None
        shutil.rmtree(self.place, ignore_errors=True)

    # -- its settings

    def _environment(self) -> Mapping[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return inherited | {
            "HOME": str(self.place / "home"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"ga{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(self.place / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.place / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.place / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.place / "data"),
            "RABBITMQ_LOG_BASE": str(self.place / "log"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -start_epmd false"
            " -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 +sbwt none -start_epmd false",
            # The script then becomes the broker instead of watching over it, so that the child's id is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _write_state(self) -> None:
        for name in ("home", "data", "log"):
            (self.place / name).mkdir(mode=0o700)
        (self.place / "env.conf").touch()
        (self.place / "plugins").write_text("[].\n")
        (self.place / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port) + self._tls_settings())

    def _tls_settings(self) -> str:
        if self._tls is None:
            return ""
        return _TLS.format(
            port=self.tls_port,
            certificate=self._tls.pair.certificate,
            key=self._tls.pair.key,
            clients=self._tls.clients,
            verify="verify_peer" if self._tls.demand else "verify_none",
            demand="true" if self._tls.demand else "false",
        )


def _end(process: subprocess.Popen[bytes], *, patience: float) -> None:
    if patience:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
    process.kill()
    process.wait(timeout=STOP_PATIENCE)


@functools.cache
def shared_rabbitmq() -> RabbitMQ:
    """One running broker for the whole test run, ended with it; each test gets a vhost of its own."""
    return RabbitMQ().__enter__()


@contextmanager
def fragile_rabbitmq() -> Iterator[RabbitMQ]:
    """The shared broker for a test that kills or stops it; it runs again afterwards, whatever has happened."""
    broker = shared_rabbitmq()
    try:
        yield broker
    finally:
        broker.revive()
