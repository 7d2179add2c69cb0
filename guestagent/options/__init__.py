"""The options: names, types, defaults, limits and the help texts that the sample file is made of.

``config`` reads values for them; nothing else imports this.
"""

from __future__ import annotations

from collections.abc import Mapping

from oslo_config import cfg

from guestagent.options.database import DATABASE
from guestagent.options.kinds import KIB, MIB, Size, reloaded

__all__ = ["GROUPS", "Size"]

DEFAULT = (
    cfg.StrOpt(
        "guest_id",
        default="",
        help="Name of this instance: the first part of the key of every object that it stores, so that credentials "
        "can be confined to it. Letters, digits, dots, dashes and underscores, a letter or a digit first, at most "
        "128 of them. Needed to take backups; a restore does without.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/guestagent",
        help="Directory of the agent's own files: the record of its jobs, the lock that keeps them apart, updates that "
        "the conductor has not got yet, marks of unfinished backups, and scratch space of a few MiB. Must outlive a "
        "reboot.",
    ),
    cfg.StrOpt(
        "transport_url",
        default="local:///run/guestagent",
        secret=True,
        help="Where the agent is spoken to: rabbit://USER:PASSWORD@HOST:PORT/VHOST, or local:///DIRECTORY for UNIX "
        "sockets of this host alone. How oslo.messaging treats RabbitMQ is set in [oslo_messaging_rabbit].",
    ),
    cfg.StrOpt(
        "control_exchange",
        default="trove",
        help="Exchange of the control plane's messages. Trove's own default.",
    ),
    cfg.StrOpt(
        "instance_rpc_encr_key",
        default="",
        secret=True,
        help="Key that Trove encrypts this instance's messages with, where enable_secure_rpc_messaging is set there. "
        "Empty: messages are plain.",
    ),
)

STORAGE = reloaded(
    cfg.StrOpt(
        "url",
        default="",
        help="Where backups lie: s3://BUCKET/PREFIX or file:///DIRECTORY. Objects go to INSTANCE/BACKUP below it.",
    ),
    cfg.StrOpt(
        "verify",
        default="sizes",
        choices=[
            ("sizes", "list the objects and compare their number and sizes: one cheap request for 1,000 segments"),
            ("bytes", "read every object back and compare its SHA-256: doubles the traffic"),
        ],
        help="How the segments of a backup are proven to be in the store before its manifest is written.",
    ),
)

S3 = reloaded(
    cfg.StrOpt("endpoint_url", default="", help="URL of the store, http or https. Empty: Amazon's for the region."),
    cfg.StrOpt("region_name", default="", help="Region that requests are signed for. Empty: as boto3 finds it."),
    cfg.StrOpt(
        "access_key_id",
        default="",
        help="Access key. Empty: boto3's own chain of environment, ~/.aws and instance role.",
    ),
    cfg.StrOpt("secret_access_key", default="", secret=True, help="Secret that belongs to access_key_id."),
    cfg.StrOpt(
        "addressing_style",
        default="auto",
        choices=[
            ("auto", "virtual where the bucket's name and the endpoint allow it"),
            ("path", "https://endpoint/bucket/key: most private stores"),
            ("virtual", "https://bucket.endpoint/key"),
        ],
        help="Where requests carry the bucket's name.",
    ),
    cfg.StrOpt("ca_bundle", default="", help="File of CA certificates (PEM) to trust. Empty: those of boto3."),
    cfg.StrOpt("client_cert", default="", help="Certificate (PEM) to show to a store that asks for one."),
    cfg.StrOpt("client_key", default="", help="Private key (PEM) of client_cert. Empty: it is in the same file."),
    cfg.StrOpt(
        "request_checksum_calculation",
        default="when_supported",
        choices=[
            ("when_supported", "send a checksum with every upload"),
            ("when_required", "send none that is not required; for older stores that choke on checksum trailers"),
        ],
        help="Whether uploads carry a checksum that the store checks.",
    ),
    cfg.IntOpt(
        "max_attempts",
        default=10,
        min=1,
        max=100,
        help="How often a request is tried in all, with growing pauses between.",
    ),
    cfg.IntOpt("connect_timeout", default=10, min=1, help="Seconds to wait for a connection."),
    cfg.IntOpt("read_timeout", default=60, min=1, help="Seconds to wait for the next bytes of an answer."),
)

STREAM = reloaded(
    cfg.StrOpt(
        "compression",
        default="zstd",
        choices=[("zstd", "independent zstd frames"), ("none", "for data that is compressed or encrypted already")],
        help="How segments of new backups are compressed.",
    ),
    cfg.IntOpt(
        "level",
        default=1,
        min=1,
        max=19,
        help="Level of zstd. A higher one costs much time and, on database pages, often wins little or nothing: "
        "measure with your own data.",
    ),
    cfg.Opt(
        "segment_size",
        type=Size(least=MIB, most=64 * MIB),
        default="16M",
        help="Bytes of the stream in one object, about. A backup holds a few segments for each worker in memory.",
    ),
    cfg.IntOpt(
        "workers",
        default=0,
        min=0,
        max=64,
        help="Threads that compress, hash and upload. 0: chosen from the number of processors.",
    ),
    cfg.Opt(
        "rate_limit",
        type=Size(least=64 * KIB, off=True),
        default="0",
        help="Bytes a second, such as 20M, that all workers of one job together send to the store or fetch from it, on "
        "average; a segment runs ahead. 0: as many as go through.",
    ),
    cfg.IntOpt(
        "no_progress_limit",
        default=600,
        min=0,
        help="Seconds without a byte after which a backup or a restore is given up. 0: never.",
    ),
)

ENCRYPTION = reloaded(
    cfg.StrOpt(
        "key_file",
        default="",
        help="File of the key that every new backup is encrypted with, as `guestagent key generate` makes it: 32 "
        "random bytes in Base64, for the eyes of the agent's user alone. Empty, and no key either: new backups are "
        "not encrypted. Without the key nobody can restore: keep a copy away from this host and from the store.",
    ),
    cfg.ListOpt(
        "old_key_files",
        default=[],
        help="Files of keys that older backups are encrypted with, separated by commas. `guestagent key list` tells "
        "which of them are still in use.",
    ),
    cfg.StrOpt(
        "key",
        default="",
        help="A key in AWS KMS, instead of key_file: kms://KEY?region=REGION, where KEY is an id, an ARN or an alias "
        "such as alias/backups. Never the key itself.",
    ),
    cfg.ListOpt(
        "old_keys",
        default=[],
        help="Keys in KMS that older backups are encrypted with, separated by commas.",
    ),
    cfg.StrOpt("kms_endpoint_url", default="", help="URL of KMS. Empty: Amazon's for the region."),
    cfg.StrOpt(
        "kms_access_key_id",
        default="",
        help="Access key for KMS. Empty: boto3's own chain of environment, ~/.aws and instance role.",
    ),
    cfg.StrOpt("kms_secret_access_key", default="", secret=True, help="Secret that belongs to kms_access_key_id."),
    cfg.StrOpt(
        "kms_ca_bundle",
        default="",
        help="File of CA certificates (PEM) to trust for KMS. Empty: the system's own.",
    ),
)

RESTORE = reloaded(
    cfg.Opt(
        "use_memory",
        type=Size(least=8 * MIB, auto=True),
        default="auto",
        help="Memory for the prepare of a restored backup; auto takes a share of what is free. Much memory makes a "
        "long redo log apply faster.",
    ),
    cfg.StrOpt(
        "work_dir",
        default="",
        help="Directory for the incrementals of a restore until they are applied. Empty: inside the target, as the "
        "restored data is until the swap.",
    ),
    cfg.IntOpt(
        "download_workers",
        default=0,
        min=0,
        max=64,
        help="Threads that fetch, check, decompress and write segments. 0: chosen from the number of processors.",
    ),
)

CONDUCTOR = (
    cfg.BoolOpt(
        "enabled",
        default=False,
        help="Whether heartbeats and the states of backups go to Trove's conductor. Without one, whoever sent a "
        "request asks for its job.",
    ),
    cfg.StrOpt("topic", default="trove-conductor", help="Topic that the conductor listens on."),
    cfg.IntOpt(
        "checksum_digits",
        default=64,
        min=32,
        max=64,
        help="How many digits of a manifest's SHA-256 the conductor is told. Trove's own table has room for 32 "
        "(backups.checksum, made for MD5) unless it was widened; set this to 32 there, or a strict database refuses "
        "the row of every finished backup.",
    ),
    cfg.IntOpt(
        "heartbeat_interval",
        default=30,
        min=1,
        max=3600,
        help="Seconds between two heartbeats, about: each pause differs by up to a tenth, so that thousands of agents "
        "do not speak at once.",
    ),
)

JOBS = (
    cfg.IntOpt(
        "queue_size",
        default=8,
        min=1,
        max=1000,
        help="Jobs that may wait for the one that runs; further requests are told that the host is busy.",
    ),
    cfg.IntOpt(
        "wait_limit",
        default=86400,
        min=1,
        help="Seconds that a job without a deadline of its own may wait before it is given up: a request of last week "
        "is not obeyed.",
    ),
    cfg.IntOpt("history", default=500, min=1, help="Jobs that have ended and are remembered; the oldest go first."),
)

GROUPS: Mapping[str, tuple[cfg.Opt, ...]] = {
    "DEFAULT": DEFAULT,
    "database": DATABASE,
    "storage": STORAGE,
    "s3": S3,
    "stream": STREAM,
    "encryption": ENCRYPTION,
    "restore": RESTORE,
    "jobs": JOBS,
    "conductor": CONDUCTOR,
}
"""All options, by the section that they stand in."""
