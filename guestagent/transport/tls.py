"""TLS with RabbitMQ: always verified, the broker's name included, and in one line what is wrong where it is refused.

oslo.messaging leaves the name unverified where no ``ssl_ca_file`` is set, and verifies nothing at all where
``ssl_version`` is; its older versions verify no name in any case.  And what keeps it from connecting it tells its log
alone, and tries again for ever.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guestagent import tls
from guestagent.errors import ConfigError, GuestagentError
from guestagent.tls import Files, Options, Terms, Trouble
from guestagent.transport.oslo import common

if TYPE_CHECKING:
    _Connection = Any
else:
    _Connection = object

LOG = logging.getLogger(__name__)

OPTIONS = Options(
    address="[DEFAULT] transport_url",
    switch="set [oslo_messaging_rabbit] ssl and ssl_ca_file, or correct the port in [DEFAULT] transport_url",
    ca="[oslo_messaging_rabbit] ssl_ca_file",
    certificate="[oslo_messaging_rabbit] ssl_cert_file",
    key="[oslo_messaging_rabbit] ssl_key_file",
)


@dataclass(frozen=True)
class Wanted:
    """What a transport is configured to.  ``name`` is the broker's, where there is only one."""

    terms: Terms
    name: str = ""

    def parameters(self) -> dict[str, Any] | bool:
        """What py-amqp makes a connection with."""
        if self.terms.context is None:
            return False
        files = self.terms.files
        names = {"ca_certs": files.ca, "certfile": files.certificate, "keyfile": files.key}
        given = {name: path for name, path in names.items() if path}
        return _OfEach(given, cert_reqs=ssl.CERT_REQUIRED, server_hostname=self.name or None)


class _OfEach(dict[str, Any]):
    """Parameters in which the name of the host is that of each connection.

    kombu puts in the name of the host that it connects to where it finds none, and finds its last one at the next.
    """

    def __init__(self, given: dict[str, Any], *, cert_reqs: ssl.VerifyMode, server_hostname: str | None) -> None:
        super().__init__(given, cert_reqs=cert_reqs, server_hostname=server_hostname)
        self._fixed = server_hostname is not None

    def __getitem__(self, name: str) -> Any:
        return None if name == "server_hostname" and not self._fixed else super().__getitem__(name)


def secure(transport: Any) -> None:
    """Verify whom a transport to RabbitMQ talks to; others stay as they are.  Raises ConfigError for unusable files."""
    pool: Any = getattr(transport._driver, "_connection_pool", None)
    if hasattr(getattr(pool, "connection_cls", None), "ensure_connection"):
        pool.connection_cls = _secured(pool.connection_cls, _wanted(pool))


def go_on(transport: Any) -> None:
    """Let what listens through a transport log that TLS is refused, and try again, instead of raising it."""
    pool: Any = getattr(transport._driver, "_connection_pool", None)
    if pool is not None:
        pool.connection_cls.patient = True


def _wanted(pool: Any) -> Wanted:
    given, hosts = pool.conf.oslo_messaging_rabbit, pool.url.hosts
    if not given.ssl:
        return Wanted(Terms(OPTIONS))
    if not hasattr(pool.connection_cls, "_fetch_ssl_params"):
        raise ConfigError("this oslo.messaging cannot be made to verify a broker", hint="install the one of setup.cfg")
    files = Files(given.ssl_ca_file, given.ssl_cert_file, given.ssl_key_file)
    return Wanted(tls.opened(files, OPTIONS), hosts[0].hostname if len(hosts) == 1 else "")


def _secured(kind: Any, wanted: Wanted) -> Any:
    """A driver's class of connections that verifies, and says what is wrong."""
    return type("Secured", (_Secured, kind), {"wanted": wanted})


class _Secured(_Connection):  # type: ignore[misc]
    """What stands before a driver's own methods: raises what is wrong with TLS once every host has been tried.

    A connection that is patient and listens logs it instead.
    """

    wanted: Wanted
    patient = False

    def _fetch_ssl_params(self) -> dict[str, Any] | bool:
        return self.wanted.parameters()

    def ensure_connection(self) -> None:
        self._refused = 0
        with self._hearing(), self._explaining():
            super().ensure_connection()

    def ensure(
        self,
        method: Callable[[], object],
        retry: int | None = None,
        recoverable_error_callback: Callable[[Exception], object] | None = None,
        **options: Any,
    ) -> Any:
        def failed(error: Exception) -> None:
            self._mention(error)
            if recoverable_error_callback is not None:
                recoverable_error_callback(error)

        return super().ensure(method, retry, failed, **options)

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Hear of each host that cannot be connected to, while kombu tries one after the other."""
        connect = self.connection.ensure_connection

        def connecting(*, errback: Callable[[Exception, float], object], **options: Any) -> object:
            return connect(errback=lambda error, pause: self._tell(error) or errback(error, pause), **options)

        self.connection.ensure_connection = connecting
        try:
            yield
        finally:
            del self.connection.ensure_connection

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Raise what is wrong with TLS in place of what came of it."""
        try:
            yield
        except GuestagentError:
            raise
        except Exception as error:
            if found := self._found(error):
                raise _raised(found) from error
            raise

    def _mention(self, error: Exception) -> None:
        """Log what ends a connection that goes on by itself."""
        if self._goes_on and (found := self._found(error)):
            LOG.error("no connection to the broker: %s", found)

    def _tell(self, error: Exception) -> bool:
        """Whether it has been told what is wrong; raises it where all hosts have been tried."""
        found = self._found(error)
        if found is None:
            return False
        self._refused += 1
        if not self._goes_on and self._refused >= len(self.connection.alt or "1"):
            raise _raised(found) from error
        LOG.error("no connection to the broker: %s", found)
        return True

    @property
    def _goes_on(self) -> bool:
        return bool(self.patient and self.purpose == common.PURPOSE_LISTEN)

    def _found(self, error: Exception) -> Trouble | None:
        # kombu takes 127.0.0.1 for localhost.
        host = self.wanted.name or self.connection.hostname or "localhost"
        return _explained(error, host, self.connection.port, self.wanted)


def _raised(found: Trouble) -> GuestagentError:
    return GuestagentError(f"no connection to the broker: {found.what}", hint=found.hint)


def _explained(error: Exception, host: str, port: int, wanted: Wanted) -> Trouble | None:
    """What is wrong with TLS, from an error, or from a second look where a connection just broke off."""
    found = tls.trouble(error, f"{host}:{port}", wanted.terms)
    if found is None and _broke_off(error):
        found = tls.look(host, port, wanted.terms)
    return found


def _broke_off(error: Exception) -> bool:
    """Whether somebody was there, and ended the connection without a word."""
    if isinstance(error, ConnectionRefusedError | TimeoutError | socket.gaierror):
        return False
    return isinstance(error, OSError)
