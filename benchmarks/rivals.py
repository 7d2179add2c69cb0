"""What an operator would type: backups and restores by shell pipelines, as tuned as they get with tools off the shelf.

The texts are bash.  What differs between two runs stands in the environment; ``variables`` says what must be there:

    SOCKET, DB_USER    the server, and the account that takes backups
    OS_USER            who owns the restored files
    ENDPOINT, BUCKET   the store
    EXPECTED           bytes of the data set, about
    SCRATCH            a directory for the LSNs of a backup, and for the incrementals of a restore
    TARGET             the directory that a restore fills; it is not there before

The key of a backup is ``$1``, and ``$2`` is the LSN to start from for an incremental.  A restore gets the keys of its
chain, base first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TROVE = Path(__file__).with_name("race_trove.py")

HEAD = "set -euo pipefail\n"

BACKUP = """\
mariabackup --no-defaults --backup --socket="$SOCKET" --user="$DB_USER" {parallel}--stream=mbstream \\
    --target-dir="$SCRATCH" --extra-lsndir="$SCRATCH"{since} | {compress} | {put}
"""

RESTORE = """\
fetch() {{ {get} | {decompress} | {extract} -C "$2"; }}

mkdir -p "$TARGET"
fetch "$1" "$TARGET"
mariabackup --prepare --use-memory=1G --target-dir="$TARGET"
for key in "${{@:2}}"; do
    mkdir "$SCRATCH/link"
    fetch "$key" "$SCRATCH/link"
    mariabackup --prepare --use-memory=1G --target-dir="$TARGET" --incremental-dir="$SCRATCH/link"
    rm -r "$SCRATCH/link"
done
chown -R "$OS_USER:" "$TARGET"
"""


@dataclass(frozen=True)
class Pipeline:
    """Filters that stand between mariabackup and the store; ``put`` and ``get`` take the key as ``$1``."""

    name: str
    put: str
    get: str
    compress: str = "zstd -q -1 -T2"
    decompress: str = "zstd -q -d"
    parallel: str = "--parallel=2 "
    extract: str = "mbstream -x -p 2"

    def backup(self, *, incremental: bool = False) -> str:
        """The text that takes a backup."""
        since = ' --incremental-lsn="$2"' if incremental else ""
        return HEAD + BACKUP.format(parallel=self.parallel, since=since, compress=self.compress, put=self.put)

    def restore(self) -> str:
        """The text that restores a chain."""
        return HEAD + RESTORE.format(get=self.get, decompress=self.decompress, extract=self.extract)

    def argv(self, text: str, *words: str) -> list[str]:
        """The command that runs a text with its arguments."""
        return ["bash", "-c", text, self.name, *words]


AWS = Pipeline(
    name="aws",
    put='aws --endpoint-url "$ENDPOINT" s3 cp --only-show-errors --expected-size "$EXPECTED" - "s3://$BUCKET/$1"',
    get='aws --endpoint-url "$ENDPOINT" s3 cp --only-show-errors "s3://$BUCKET/$1" -',
)

RCLONE = Pipeline(
    name="rclone",
    put='rclone rcat --s3-chunk-size 16M --s3-upload-concurrency 4 "store:$BUCKET/$1"',
    get='rclone cat "store:$BUCKET/$1"',
)

S5CMD = Pipeline(
    name="s5cmd",
    put='s5cmd --endpoint-url "$ENDPOINT" --log error pipe --concurrency 4 --part-size 16 "s3://$BUCKET/$1"',
    get='s5cmd --endpoint-url "$ENDPOINT" --log error cat --concurrency 4 --part-size 16 "s3://$BUCKET/$1"',
)

TROVES = Pipeline(
    name="trove",
    put='"$PYTHON" "$TROVE" put "$BUCKET" "$1"',
    get='"$PYTHON" "$TROVE" get "$BUCKET" "$1"',
    compress="gzip",
    decompress="gzip -d",
    parallel="",
    extract="mbstream -x",
)

PIPELINES: Mapping[str, Pipeline] = {pipeline.name: pipeline for pipeline in (AWS, RCLONE, S5CMD, TROVES)}


@dataclass(frozen=True)
class Place:
    """Where rivals find the server, the store and room to work."""

    socket: Path
    user: str
    os_user: str
    endpoint: str
    bucket: str
    key: tuple[str, str]
    expected: int
    scratch: Path
    target: Path


def variables(place: Place) -> dict[str, str]:
    """The environment that the texts, and the tools in them, expect."""
    access, secret = place.key
    return {
        "SOCKET": str(place.socket),
        "DB_USER": place.user,
        "OS_USER": place.os_user,
        "ENDPOINT": place.endpoint,
        "BUCKET": place.bucket,
        "EXPECTED": str(place.expected),
        "SCRATCH": str(place.scratch),
        "TARGET": str(place.target),
        "PYTHON": sys.executable,
        "TROVE": str(TROVE),
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(place.scratch / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(place.scratch / "no-aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "RCLONE_CONFIG": str(place.scratch / "rclone.conf"),
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": place.endpoint,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": access,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": secret,
        "RCLONE_CONFIG_STORE_REGION": "us-east-1",
        "RCLONE_CONFIG_STORE_NO_CHECK_BUCKET": "true",
    }
