"""The other side of ``ours``: what ``guestagent-ctl`` speaks through.

Every message is sent at least once, so that an agent which is not there is an error and not silence.  What starts work
gets its id here, so that it can be asked for again after no answer came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from guestagent import errors
from guestagent.errors import GuestagentError, NotFound, Stalled, UsageError, one_line
from guestagent.manifest import timestamp
from guestagent.rpc.orders import Shown, new_id
from guestagent.rpc.ours import JOBS, NAMESPACE, VERSION
from guestagent.rpc.secure import GuestSerializer
from guestagent.rpc.wire import EXCHANGE, Alone, open_transport, topic_of
from guestagent.transport.oslo import messaging

TIMEOUT = 30.0
"""Seconds to wait for an answer."""
CONNECT_TIMEOUT = 5.0
"""Seconds more to wait for a broker."""
_UNKNOWN = ("NoSuchMethod", "UnsupportedVersion")
_Rows = list[Shown]


class Unreachable(GuestagentError):
    """The agent could not be asked; asking again may help."""


class Absent(NotFound, Unreachable):
    """Nobody listens there."""


class NoAnswer(Stalled, Unreachable):
    """The agent has the question, or its queue has, and no answer came in time."""


class AgentClient:
    """One instance's agent, as its caller sees it; a context manager.  ``conf`` is as open_transport takes it.

    Every method raises errors of guestagent.errors: the agent's own, with their hints; Absent (NotFound) if no agent
    listens; NoAnswer (Stalled) if none answers within ``timeout`` seconds; Unreachable if the transport is away.
    """

    def __init__(
        self,
        transport_url: str,
        instance: str,
        *,
        conf: Any,
        timeout: float = TIMEOUT,
        exchange: str = EXCHANGE,
        key: str = "",
    ) -> None:
        self._instance = instance
        self._timeout = timeout
        self._alone = Alone("rpc client")
        self._transport = open_transport(conf, transport_url)
        target = messaging.Target(exchange=exchange, topic=topic_of(instance), namespace=NAMESPACE, version=VERSION)
        self._client = messaging.get_rpc_client(
            self._transport,
            target,
            timeout=timeout,
            retry=0,
            serializer=GuestSerializer(key) if key else None,
            transport_options=messaging.TransportOptions(at_least_once=True),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._alone.busy:
            with suppress(TimeoutError):
                self._alone.run(self._transport.cleanup, patience=CONNECT_TIMEOUT)

    def create(
        self,
        *,
        id: str | None = None,
        name: str = "",
        description: str = "",
        parent: str | None = None,
        deadline: datetime | None = None,
    ) -> Shown:
        """Ask for a backup; gives the job."""
        return self._order("create", id, deadline, name=name, description=description, parent=parent)

    def restore(
        self,
        source: str,
        *,
        id: str | None = None,
        replace: bool = False,
        start: bool | None = None,
        accept_unencrypted: str | None = None,
        deadline: datetime | None = None,
    ) -> Shown:
        """Ask for a restore of a backup's id or location; gives the job."""
        # Older agents do not know the last one, and refuse what they do not know.
        asked = {"accept_unencrypted": accept_unencrypted} if accept_unencrypted else {}
        return self._order("restore", id, deadline, source=source, replace=replace, start=start, **asked)

    def verify(self, backup_id: str, *, id: str | None = None, deadline: datetime | None = None) -> Shown:
        """Ask for a look at every byte of a backup; gives the job."""
        return self._order("verify", id, deadline, backup_id=backup_id)

    def delete(
        self, backup_id: str, *, cascade: bool = False, id: str | None = None, deadline: datetime | None = None
    ) -> Shown:
        """Ask for a backup to be deleted; gives the job."""
        return self._order("delete", id, deadline, backup_id=backup_id, cascade=cascade)

    def cancel(self, job_id: str) -> Shown:
        """Cancel a job; gives it as it is then."""
        return self._ask("cancel", job_id=job_id)  # type: ignore[no-any-return]

    def show(self, backup_id: str) -> Shown:
        """A backup's properties."""
        return self._ask("show", backup_id=backup_id)  # type: ignore[no-any-return]

    def list(self, *, all: bool = False) -> _Rows:
        """The properties of the instance's backups, or of everybody's, oldest first."""
        return self._ask("list", all=all)  # type: ignore[no-any-return]

    def jobs(self, *, job_id: str | None = None, limit: int = JOBS) -> _Rows:
        """The host's jobs, newest first; with ``job_id`` that one alone."""
        return self._ask("jobs", job_id=job_id, limit=limit)  # type: ignore[no-any-return]

    def doctor(self) -> _Rows:
        """The findings of the host's doctor."""
        return self._ask("doctor")  # type: ignore[no-any-return]

    def ping(self) -> Shown:
        """Who is there."""
        return self._ask("ping")  # type: ignore[no-any-return]

    def _order(self, method: str, job_id: str | None, deadline: datetime | None, **arguments: Any) -> Shown:
        wanted = job_id or new_id()
        until = timestamp(deadline) if deadline else None
        hint = f"it may have the request all the same: ask for job {wanted}, or again with that id"
        return self._ask(method, hint=hint, id=wanted, deadline=until, **arguments)  # type: ignore[no-any-return]

    def _ask(self, method: str, *, hint: str = "is it up? its log may say more", **arguments: Any) -> Any:
        with self._in_our_words(hint):
            return self._alone.run(
                lambda: self._client.call({}, method, **arguments), patience=self._timeout + CONNECT_TIMEOUT
            )

    @contextmanager
    def _in_our_words(self, hint: str) -> Iterator[None]:
        who = f"the agent of {self._instance}"
        try:
            yield
        except GuestagentError as error:
            raise _local(error) from None
        except messaging.MessageUndeliverable as error:
            raise Absent(
                f"no agent of {self._instance} is listening", hint="start it, or look at the instance's id"
            ) from error
        except messaging.MessagingTimeout as error:
            raise NoAnswer(f"{who} did not answer within {self._timeout:g} s", hint=hint) from error
        except messaging.RemoteError as error:
            raise _remote(who, error) from None
        except TimeoutError as error:
            raise Unreachable(f"no broker between us and {who}, or none that answers", hint=hint) from error
        except messaging.MessagingException as error:
            raise Unreachable(
                f"cannot reach {who}: {one_line(str(error))}", hint="look at transport_url, and at the broker"
            ) from error


def _local(error: GuestagentError) -> GuestagentError:
    """What the agent raised, as the class that it was there: the one that came has a text of oslo's own."""
    found = getattr(errors, type(error).__name__.removesuffix("_Remote"), GuestagentError)
    made: GuestagentError = found(error.what, hint=error.hint)
    return made


def _remote(who: str, error: Any) -> GuestagentError:
    """An error whose class we do not have."""
    if error.exc_type in _UNKNOWN:
        return UsageError(f"{who} does not know this request", hint="it is of another version; update it")
    return GuestagentError(f"{who}: {one_line(str(error.value))}")
