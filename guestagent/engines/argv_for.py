"""The part of a command that both tools share: one grew out of the other."""

from __future__ import annotations

from guestagent.engines import DumpRequest, PrepareRequest

OPTION_FILE = "backup-my.cnf"
"""What both tools write at the root of a backup, and want back for its prepare."""


def dump(tool: str, stream_format: str, request: DumpRequest) -> list[str]:
    """A dump to stdout, as the ancestors of both tools took it; --defaults-file must come first."""
    argv = [
        tool,
        f"--defaults-file={request.option_file}",
        "--backup",
        f"--stream={stream_format}",
        f"--target-dir={request.target_dir}",
        f"--extra-lsndir={request.facts_dir}",
        f"--parallel={request.parallel}",
    ]
    return argv if request.since is None else [*argv, f"--incremental-lsn={request.since}"]


def prepare(tool: str, request: PrepareRequest) -> list[str]:
    """A prepare; without what backup-my.cnf says an encrypted base could not be prepared."""
    argv = [
        tool,
        f"--defaults-file={request.base / OPTION_FILE}",
        "--prepare",
        f"--target-dir={request.base}",
        f"--use-memory={request.use_memory}",
    ]
    return argv if request.incremental is None else [*argv, f"--incremental-dir={request.incremental}"]
