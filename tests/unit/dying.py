"""Kill -9 before a chosen write to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable


def killed_at(step: int, act: Callable[[], object]) -> None:
    """Run ``act`` in a child that dies, as by kill -9, before its step-th write to the disk."""
    child = os.fork()
    if child == 0:
        left = [step]

        def dying(name: str) -> None:
            real = getattr(os, name)

            def call(*arguments: object, **options: object) -> object:
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return real(*arguments, **options)

            setattr(os, name, call)

        for name in ("open", "fsync", "rename", "unlink"):
            dying(name)
        act()
        os._exit(0)
    os.waitpid(child, 0)
