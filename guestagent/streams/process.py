"""Child processes: started, listened to, and never left behind.

A child runs in a process group of its own.  Its stderr is drained all the
time, logged line by line, and the last lines ride in the error.  The way out
is a ladder: SIGINT (mariabackup ignores SIGTERM), a grace period, SIGKILL.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from guestagent.errors import ToolError
from guestagent.progress import Watch
from guestagent.streams import limits, orphans

LOG = logging.getLogger(__name__)

ON_THE_WAY = 256 << 10
"""Bytes of a stream that the kernel holds between a tool and us, at the most; more are no faster."""
TAIL_LINES = 40
LINE_LIMIT = 2000
GRACE = 5.0
"""Seconds between SIGINT and SIGKILL."""
POLL = 0.2
"""Seconds between two looks at whether to stop, while waiting for something else."""
LOOK = 0.02
"""Seconds between two looks at whether a child has ended."""
LAST_WORDS = 64 << 10
"""Bytes of a command's output that are read for its last lines."""

NICEST = 19
"""The niceness that gives way most."""

_SECRET_NAME = re.compile(
    r"SECRET|PASS(W|PHRASE)|(^|_)PASS(_|$)|TOKEN|CREDENTIAL|(ACCESS|API|PRIVATE)_?KEY|_KEY$|._PWD$|_PW$"
    r"|(^|_)AUTH(ORIZATION)?$|^OS_|^AWS_"
)
_SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]+@")
"""A URL with a password in it: a proxy's, a database's."""

_HASH = re.compile(r"(IDENTIFIED (?:BY PASSWORD|WITH \S+ (?:USING|AS|BY))) '[^']*'", re.IGNORECASE)


@dataclass(frozen=True)
class Niceness:
    """How a process gives way: ``cpu`` is added to our niceness, ``disk`` is ``idle``, ``best-effort:N`` or as we do.

    It is on the command before the tool's first instruction, so every thread and child of the tool has it.
    """

    cpu: int = 0
    disk: str = ""

    def before(self, argv: Sequence[str]) -> Sequence[str]:
        """The command with it; one without a program stays as it is, and is told by its own name then."""
        kind, _, level = self.disk.partition(":")
        cpu = ["nice", "-n", str(self.cpu)] if self.cpu else []
        disk = ["ionice", "-c", kind, *(["-n", level] if level else [])] if kind else []
        return [*cpu, *disk, *argv] if shutil.which(argv[0]) else argv

    def of_session(self, leader: int) -> None:
        """Have the session that ``leader`` has begun give way as a whole.

        With kernel.sched_autogroup_enabled niceness counts among the processes of one session alone (sched(7)), and
        each child is a session of its own.
        """
        if self.cpu:
            ours = os.getpriority(os.PRIO_PROCESS, 0)
            try:
                with open(f"/proc/{leader}/autogroup", "w") as file:
                    file.write(str(min(NICEST, ours + self.cpu)))
            except OSError as error:  # no such kernel, or the child has ended
                LOG.debug("process %d is a nice one among its own session alone: %s", leader, error)


def lower_thread(by: int) -> None:
    """Add ``by`` to the niceness of the calling thread, and of those that it will start, until they end."""
    if by:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(NICEST, os.getpriority(os.PRIO_PROCESS, thread) + by))


AS_WE_ARE = Niceness()


def clean_environment() -> dict[str, str]:
    """Our environment without whatever looks like a secret; all that a child gets to see."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != orphans.MARK and not _SECRET_NAME.search(name.upper()) and not _SECRET_VALUE.search(value)
    }


def output_of(argv: Sequence[str], *, timeout: float = 30) -> str:
    """What a short-lived command printed on both outputs; raises ToolError unless it exits with 0."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            start_new_session=True,
            env=clean_environment(),
        )
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"cannot run {argv[0]}: {error}") from error
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        tail = tuple(text.splitlines()[-TAIL_LINES:])
        raise ToolError(f"{argv[0]} {_ending(done.returncode)}{_last_words(tail)}", tail=tail)
    return text


def _bound(argv: Sequence[str]) -> Sequence[str]:
    """The command, such that the kernel ends it when the thread that starts it is gone.

    A killed agent would leave a prepare behind, which works where the next restore does.  setpriv is
    of util-linux, which every Debian has; without it, or without the tool, the command stays as it is.
    """
    if shutil.which("setpriv") and shutil.which(argv[0]):
        return ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    return argv


def run_command(argv: Sequence[str], watch: Watch, *, environment: dict[str, str] | None = None) -> None:
    """Run a command of the operator's to its end; raises ToolError unless it exits with 0.

    It may leave a server behind, so its output goes to a file, not to a pipe of ours, and only
    the command itself is ended when the watch says so.
    """
    with tempfile.TemporaryFile() as words:
        process = _spawn(argv, stdout=words, stderr=subprocess.STDOUT, environment=environment)
        try:
            _await(process, watch)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        words.seek(max(0, words.seek(0, os.SEEK_END) - LAST_WORDS))
        tail = tuple(words.read(LAST_WORDS).decode(errors="replace").splitlines()[-TAIL_LINES:])
    if process.returncode:
        watch.cancel.check()  # as in Child.finish
        raise ToolError(f"{' '.join(argv)} {_ending(process.returncode)}{_last_words(tail)}", tail=tail)


def _spawn(
    argv: Sequence[str],
    *,
    stdout: int | IO[bytes],
    stderr: int,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    LOG.debug("starting %s", " ".join(argv))
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            bufsize=0,
            env=clean_environment() | (environment or {}),
        )
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    except OSError as error:
        raise ToolError(f"cannot start {argv[0]}: {error.strerror}") from error


def _await(process: subprocess.Popen[bytes], watch: Watch) -> None:
    while process.poll() is None:
        watch.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)


class Child:
    """One running tool; a context manager that ends it, whatever happens: it dies with the thread that made it.

    ``stream`` says whether stdout is a stream for :meth:`read_into`; otherwise stdout joins
    stderr in the log.  ``on_line`` is called, from another thread, with every line.  ``hidden`` are secrets that the
    child was given: should it print them, nobody gets to see that.  ``niceness`` is how it gives way to others.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stream: bool = False,
        on_line: Callable[[str], None] | None = None,
        hidden: Sequence[str] = (),
        niceness: Niceness = AS_WE_ARE,
    ) -> None:
        self.name = os.path.basename(argv[0])
        self._hidden = _ways_to_write(hidden)
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lost = False
        command, mark = _bound(limits.roomy(niceness.before(argv))), {orphans.MARK: str(orphans.ourselves())}
        self._stream: socket.socket | None = None
        if stream:
            self._stream, theirs = _ends()
            with theirs, contextlib.ExitStack() as given_up:
                given_up.callback(self._stream.close)
                self._process = _spawn(command, stdout=theirs.fileno(), stderr=subprocess.PIPE, environment=mark)
                given_up.pop_all()
        else:
            self._process = _spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment=mark)
        niceness.of_session(self.pid)
        self._drain = threading.Thread(target=self._listen, name=f"{self.name}-stderr", daemon=True)
        self._drain.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The child's process id, which is its group's too."""
        return self._process.pid

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of stderr; complete once the child has ended."""
        return tuple(self._tail)

    def read_into(self, view: memoryview, *, stopped: Callable[[], bool]) -> int:
        """Read what the stream has, at most ``len(view)`` bytes; 0 at its end, or once ``stopped()`` says so."""
        assert self._stream is not None
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        while not stopped():
            if poll.poll(POLL * 1000):
                return self._stream.recv_into(view)
        return 0

    def finish(self, watch: Watch) -> None:
        """Wait for the child to end; raises ToolError unless it exits with 0."""
        while not self._ended():
            watch.check()
            time.sleep(LOOK)
        code = self._reap()
        if self._lost:
            raise ToolError(f"cannot learn how {self.name} ended", hint="start guestagent without SIGCHLD ignored")
        if code:
            watch.cancel.check()  # a signal to our group may hit a child that has not left it yet
            why = f"{self.name} {_ending(code)}{_last_words(self.tail)}"
            raise ToolError(why, hint=limits.remedy(self.tail), tail=self.tail)

    def end(self) -> None:
        """End the child and its group if they still run; returns when they are gone."""
        if not self._ended():
            LOG.info("ending %s (pid %d)", self.name, self.pid)
            self._signal(signal.SIGINT)
            self._wait(GRACE)
        self._reap()
        self._close_stream()

    def _ended(self) -> bool:
        """Whether the child has ended; asks without reaping it, so that its group's id stays its own."""
        if self._process.returncode is None and not self._lost:
            try:
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                self._lost = True  # the system has gathered it, and nobody knows its exit code
        return True

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(LOOK)

    def _reap(self) -> int:
        """Kill what is left of the child's group, once, and gather the child; gives its exit code."""
        if self._process.returncode is None and not self._lost:
            self._signal(signal.SIGKILL)
        code = self._process.wait()
        self._drain.join(GRACE)
        return code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _listen(self) -> None:
        pipe = self._process.stderr or self._process.stdout
        assert pipe is not None
        with pipe:
            for line in (_masked(line, self._hidden) for line in _lines(pipe.fileno())):
                self._tail.append(line)
                LOG.debug("%s: %s", self.name, line)
                if self._on_line:
                    self._on_line(line)


def _ends() -> tuple[socket.socket, socket.socket]:
    """Our end and the tool's of a stream: sockets, which cost two thirds of what a pipe does for the same bytes."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ON_THE_WAY)
    return ours, theirs


def _lines(descriptor: int) -> Iterator[str]:
    """The lines that come out of a pipe, each cut to LINE_LIMIT characters, in bounded memory."""
    rest = b""
    while data := os.read(descriptor, 1 << 16):
        *whole, rest = (rest + data).split(b"\n")
        rest = rest[: LINE_LIMIT * 4]
        for line in whole:
            if line.strip():
                yield line.decode(errors="replace").rstrip()[:LINE_LIMIT]
    if rest.strip():
        yield rest.decode(errors="replace").rstrip()[:LINE_LIMIT]


def _masked(line: str, hidden: Sequence[str]) -> str:
    """The line without secrets, nor the hash of one: mariabackup prints SHOW GRANTS when a privilege is missing."""
    cut = len(line) == LINE_LIMIT
    for secret in hidden:
        line = line.replace(secret, "***")
    return _HASH.sub(r"\1 '***'", _without_half(line, hidden) if cut else line)


def _without_half(line: str, hidden: Sequence[str]) -> str:
    """A line that was cut, without the beginning of a secret where it ends."""
    halves = (secret[:length] for secret in hidden for length in range(len(secret) - 1, 0, -1))
    return line.removesuffix(next((half for half in halves if line.endswith(half)), ""))


def _ways_to_write(secrets: Sequence[str]) -> tuple[str, ...]:
    """The secrets, as they are and as option files have them, longest first."""
    escaped = (secret.replace("\\", "\\\\").replace('"', '\\"') for secret in secrets)
    return tuple(sorted({one for one in (*secrets, *escaped) if one}, key=len, reverse=True))


def _missing(tool: str) -> ToolError:
    return ToolError(f"{tool} is not installed", hint=f"install the package that has {tool}, or put it on PATH")


def _ending(code: int) -> str:
    if code > 0:
        return f"failed with exit status {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"died by {names.get(-code, f'signal {-code}')}"


def _last_words(tail: Sequence[str]) -> str:
    return f": {tail[-1]}" if tail else ""
