"""From a message to an endpoint's method, and every error as one line: to the caller, and in the log.

oslo.messaging would log a traceback for whatever a caller gets wrong, and answer one that shows our insides.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from guestagent.errors import GuestagentError, UsageError, one_line
from guestagent.rpc.checks import shown
from guestagent.transport.oslo import messaging

LOG = logging.getLogger(__name__)

_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}", re.ASCII)
_UNKNOWN = (messaging.NoSuchMethod, messaging.UnsupportedVersion)


class Dispatcher(messaging.RPCDispatcher):  # type: ignore[misc]
    """oslo's dispatcher for methods that are exposed, with errors that are ours."""

    def __init__(self, endpoints: list[Any], serializer: Any) -> None:
        super().__init__(endpoints, serializer, messaging.ExplicitRPCAccessPolicy)

    def dispatch(self, incoming: Any) -> Any:
        """The reply; raises ExpectedException, which oslo's server answers and does not log."""
        method = shown(str(incoming.message.get("method")))
        try:
            _check_shape(incoming)
            self._check_known(incoming.message)
            return super().dispatch(incoming)
        except (GuestagentError, *_UNKNOWN) as error:
            LOG.warning("refused %s: %s", method, one_line(str(error)))
            raise _answered(error) from None
        except Exception as error:
            LOG.exception("%s failed, and this is a bug", method)
            raise _answered(
                GuestagentError(
                    f"{type(error).__name__} in {method}", hint="this is a bug; the agent's log shows where"
                )
            ) from None

    def _check_known(self, message: dict[str, Any]) -> None:
        """Raise what oslo would, but before it starts the thread that tells a waiting client that we work on it."""
        version, method = message.get("version", "1.0"), message["method"]
        spoken = [
            one
            for one in self.endpoints
            if self._is_namespace(one.target, message.get("namespace")) and self._is_compatible(one.target, version)
        ]
        if not spoken:
            raise messaging.UnsupportedVersion(version, method=shown(method))
        if not any(hasattr(one, method) and self.access_policy.is_allowed(one, method) for one in spoken):
            raise messaging.NoSuchMethod(shown(method))


def _check_shape(incoming: Any) -> None:
    """Raise UsageError unless the message is one of oslo's in form."""
    message = incoming.message
    if not isinstance(incoming.ctxt, dict):
        raise UsageError("the context must be a table")
    if not isinstance(message.get("method"), str):
        raise UsageError("the method must be a name")
    if not isinstance(message.get("args", {}), dict):
        raise UsageError(f"the arguments of {shown(message['method'])} must be a table")
    if not isinstance(message.get("namespace"), str | None):
        raise UsageError(f"the namespace of {shown(message['method'])} must be a name, or null")
    if not _VERSION.fullmatch(str(message.get("version", "1.0"))):
        raise UsageError(f"the version of {shown(message['method'])} must be a number such as 1.0")


def _answered(error: Exception) -> Exception:
    """An error for the caller: what it says, and nothing of where it came from."""
    error.__cause__, error.__suppress_context__ = None, True
    expected: Exception = messaging.ExpectedException()
    expected.exc_info = (type(error), error, None)  # type: ignore[attr-defined]
    return expected
