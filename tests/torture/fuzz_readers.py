"""Every reader of what a stranger may have written, fuzzed: by atheris where it is installed, else by hypothesis.

As a program, ``python -m tests.torture.fuzz_readers READER SECONDS DIRECTORY`` has atheris feed one reader, guided by
the branches that are taken; what breaks the reader lies in the directory then.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

LONGEST = 1 << 16
"""Bytes of an input."""


def seeds(reader: str) -> list[bytes]:
    """What the reader takes, to begin with."""
    from tests import wire  # noqa: PLC0415
    from tests.hostile import BACKUP, KEY, samples  # noqa: PLC0415

    if (sample := samples().get(reader)) is not None:
        return [sample]
    if "stream" in reader:
        return [
            wire.file(b"d/t.ibd", b"content"),
            wire.end(b"a") + wire.rename(b"a", b"b"),
            wire.sparse(b"a", [(4096, b"x"), (0, b"y")]) + wire.end(b"a"),
            wire.seek(b"a", 4096) + wire.payload(b"a", b"x", 4096) + wire.end(b"a"),
        ]
    if reader == "zstd":
        import zstandard  # noqa: PLC0415

        return [zstandard.compress(bytes(range(256)) * 256), zstandard.compress(b"") * 3]
    if reader == "sealed segment":
        from guestagent.streams.seal import Seal  # noqa: PLC0415

        return [Seal(KEY, BACKUP).close(0, True, b"content")]
    if reader == "frames":
        body = samples()["frame"]
        return [b"\x01" + len(body).to_bytes(4, "big") + body]
    return [
        b"backup_type = full-backuped\nfrom_lsn = 0\nto_lsn = 1\nlast_lsn = 2\n",
        b"[mysqld]\nplugin_dir=/usr/lib\n",
    ]


def with_hypothesis(reader: str, seconds: float) -> int:
    """Feed a reader mutations of its seeds for so long; gives how many."""
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415
    from hypothesis import strategies as st  # noqa: PLC0415

    from tests.hostile import READERS, judged  # noqa: PLC0415

    limit, count = time.monotonic() + seconds, 0
    edits = st.lists(st.tuples(st.integers(0, LONGEST), st.integers(0, 16), st.binary(max_size=16)), max_size=6)

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.sampled_from(seeds(reader)), edited=edits)
    def some(seed: bytes, edited: list[tuple[int, int, bytes]]) -> None:
        nonlocal count
        count += 1
        for at, width, junk in edited:
            start = at % (len(seed) + 1)
            seed = seed[:start] + junk + seed[start + width :]
        judged(READERS[reader], seed)

    while time.monotonic() < limit:
        some()
    return count


def main(reader: str, seconds: str, directory: str) -> None:
    """Have atheris feed one reader; it ends the process, with a status other than 0 if the reader broke."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["guestagent", "json"]):  # hence no import of ours before
        from tests.hostile import READERS, judged  # noqa: PLC0415

    corpus = Path(directory, "corpus")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(reader)):
        (corpus / f"seed{number}").write_bytes(seed)
    read = READERS[reader]
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-rss_limit_mb=2048", "-timeout=20", "-verbosity=0"]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={directory}/", str(corpus)],
        lambda data: judged(read, data),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
