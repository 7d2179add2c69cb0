"""``guestagent serve`` before it serves: what a command's short life allows, and an agent's months do not."""

from __future__ import annotations

import subprocess
import sys

SERVES = """
import gc
own = gc.get_threshold()
import guestagent.serve
from guestagent.cli import main, program
def serve(*_):
    print(gc.get_threshold() == own, gc.get_freeze_count() > 10_000)
guestagent.serve.serve = serve
print(own[0] < program.GARBAGE, end=" ")
main(["serve"])
"""


def test_an_agent_collects_garbage_as_python_does() -> None:
    done = subprocess.run([sys.executable, "-c", SERVES], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True True True\n", "")
