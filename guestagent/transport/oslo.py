"""What this package uses of oslo.messaging, imported in one place: quietly, and without eventlet where that can be.

oslo.messaging imports eventlet although its threads need none of it: 18 MB and half a second.  Whoever imports this
module first gets it without; in a process that has loaded oslo.messaging already, nothing is changed.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

__all__ = ["GLOBAL_OPTIONS", "base", "common", "expose", "messaging"]

Method = TypeVar("Method", bound=Callable[..., Any])

_THREADING = ("oslo_service.backend", "cotyledon")
"""What oslo.service needs to do without eventlet; its extra ``threading`` brings the second."""


def keep_eventlet_out() -> bool:
    """Choose oslo.service's threading backend and hide eventlet; gives whether that could be done.

    It cannot in a process that has loaded one of both, and without cotyledon, which that backend is built on.
    """
    if {"eventlet", "oslo_messaging"} & sys.modules.keys() or not all(find_spec(name) for name in _THREADING):
        return False
    # oslo's modules try the import and go on without; None is how Python writes down that it is not to be had.
    sys.modules["eventlet"] = None  # type: ignore[assignment]
    logging.getLogger("oslo_service.backend").setLevel(logging.WARNING)  # or it tells every command's user of it
    backend: Any = import_module("oslo_service.backend")
    backend.init_backend(backend.BackendType.THREADING)
    return True


def _global_options() -> dict[str, Sequence[Any]]:
    """Options by group; older versions have fewer."""
    found: dict[str, Sequence[Any]] = {}
    for name in ("metrics", "tracing"):
        group = f"oslo_messaging_{name}"
        if find_spec(f"oslo_messaging._{name}"):
            found[group] = getattr(import_module(f"oslo_messaging._{name}.client"), group)
    return found


# eventlet and the modules about it say that they are deprecated; nobody here can do anything about that.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keep_eventlet_out()
    import oslo_messaging as messaging  # type: ignore[import-untyped]
    from oslo_messaging._drivers import base, common  # type: ignore[import-untyped]

    GLOBAL_OPTIONS = _global_options()


def expose(method: Method) -> Method:
    """oslo.messaging's decorator for what an explicit access policy lets through, with a type."""
    exposed: Method = messaging.expose(method)
    return exposed
