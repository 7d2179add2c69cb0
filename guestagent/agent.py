"""The composition root: configuration in, parts out.  The only reader of options below the doors."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from oslo_config import cfg

from guestagent import config
from guestagent.catalog import Catalog, split_location
from guestagent.engines import Connection
from guestagent.errors import ConfigError, NotFound, UsageError
from guestagent.jobs.ledger import Ledger
from guestagent.keys import KeyRing, KeySettings, KmsSettings, open_keys
from guestagent.model import InstanceId, instance_id
from guestagent.operations.host import DatabaseSettings, Host, RestoreSettings, StreamSettings
from guestagent.storage import S3Settings, open_storage
from guestagent.streams.process import Niceness

if TYPE_CHECKING:
    from guestagent.rpc.client import AgentClient

__all__ = ["Served", "broker", "build", "client", "for_library", "ledger", "load", "reload", "served"]

load = config.load
reload = config.reload
for_library = config.for_library

BROKER_PATIENCE = 10
"""Seconds for an agent to answer that is only asked whether it does."""


@dataclass(frozen=True)
class Served:
    """What the agent that serves needs beside the host; times in seconds.  It takes a restart to change any of it."""

    instance: InstanceId
    state_dir: Path
    transport_url: str = field(repr=False)
    exchange: str = "trove"
    encryption_key: str = field(default="", repr=False)
    conductor: bool = False
    conductor_topic: str = "trove-conductor"
    heartbeat_interval: float = 30
    checksum_digits: int = 64
    queue_size: int = 8
    wait_limit: float = 86400
    history: int = 500


def build(conf: cfg.ConfigOpts, *, location: str = "") -> Host:
    """This host's parts.  ``location``, if given, is a backup's URL that names the store where none is configured."""
    url = conf.storage.url or (split_location(location)[0] if "://" in location else "")
    if not url:
        raise ConfigError("no store is configured", hint="set [storage] url, or OS_STORAGE__URL in the environment")
    instance = _instance(conf.guest_id)
    s3, keys = _s3(conf), _keys(conf)
    return Host(
        instance=instance,
        catalog=Catalog(url, instance=instance, open_storage=lambda root: open_storage(root, s3=s3), keys=keys),
        state_dir=_state_dir(conf.state_dir),
        database=_database(conf),
        stream=_stream(conf),
        restore=_restore(conf),
        verify_uploads=conf.storage.verify,
        keys=keys,
    )


def served(conf: cfg.ConfigOpts) -> Served:
    """What is served, and how; raises ConfigError, also for what ``build`` would refuse."""
    host = build(conf)
    return Served(
        instance=host.require_instance(),
        state_dir=host.state_dir,
        transport_url=_transport_url(conf),
        exchange=conf.control_exchange,
        encryption_key=conf.instance_rpc_encr_key,
        conductor=conf.conductor.enabled,
        conductor_topic=conf.conductor.topic,
        heartbeat_interval=conf.conductor.heartbeat_interval,
        checksum_digits=conf.conductor.checksum_digits,
        queue_size=conf.jobs.queue_size,
        wait_limit=conf.jobs.wait_limit,
        history=conf.jobs.history,
    )


def ledger(conf: cfg.ConfigOpts) -> Ledger:
    """The record of this host's jobs, which needs no store."""
    return Ledger(_state_dir(conf.state_dir), history=conf.jobs.history)


def client(conf: cfg.ConfigOpts, instance: InstanceId, *, timeout: float, transport_url: str = "") -> AgentClient:
    """The agent of another instance, or of this one; ``transport_url`` is where it listens, unless as configured."""
    from guestagent.rpc.client import AgentClient  # noqa: PLC0415  (few commands speak to agents, and it takes long)

    return AgentClient(
        transport_url or _transport_url(conf),
        instance,
        conf=for_library(conf),
        timeout=timeout,
        exchange=conf.control_exchange,
        key=conf.instance_rpc_encr_key,
    )


def broker(conf: cfg.ConfigOpts) -> str:
    """What was found of the broker that is configured, empty where none is; raises GuestagentError.

    It is asked for this instance's own agent: whether that listens or not, the broker knows then.
    """
    instance = _instance(conf.guest_id)
    if instance is None or _transport_url(conf).startswith("local:"):
        return ""
    try:
        with client(conf, instance, timeout=BROKER_PATIENCE) as agent:
            agent.ping()
    except NotFound:
        return f"the broker is reached; no agent of {instance} listens"
    return f"the agent of {instance} answers through the broker"


def _transport_url(conf: cfg.ConfigOpts) -> str:
    url: str = conf.transport_url
    if not url:
        raise ConfigError("[DEFAULT] transport_url is empty", hint="give rabbit://... or local:///run/guestagent")
    return url


def _instance(guest_id: str) -> InstanceId | None:
    try:
        return instance_id(guest_id) if guest_id else None
    except UsageError as error:
        raise ConfigError(f"[DEFAULT] guest_id: {error.what}", hint=error.hint) from error


def _state_dir(path: str) -> Path:
    found = _absolute(path, "[DEFAULT] state_dir")
    if found is None:
        raise ConfigError("[DEFAULT] state_dir is empty", hint="name a directory of the agent's own")
    return found


def _s3(conf: cfg.ConfigOpts) -> S3Settings:
    names = (
        "endpoint_url",
        "region_name",
        "access_key_id",
        "secret_access_key",
        "addressing_style",
        "ca_bundle",
        "client_cert",
        "client_key",
        "request_checksum_calculation",
        "max_attempts",
        "connect_timeout",
        "read_timeout",
    )
    return S3Settings(**{name: conf.s3[name] for name in names})


def _keys(conf: cfg.ConfigOpts) -> KeyRing:
    wanted = conf.encryption
    settings = KeySettings(
        key_file=Path(wanted.key_file) if wanted.key_file else None,
        old_key_files=tuple(Path(path) for path in wanted.old_key_files),
        kms=wanted.key,
        old_kms=tuple(wanted.old_keys),
        access=KmsSettings(
            endpoint_url=wanted.kms_endpoint_url,
            access_key_id=wanted.kms_access_key_id,
            secret_access_key=wanted.kms_secret_access_key,
            ca_bundle=wanted.kms_ca_bundle,
        ),
    )
    return open_keys(settings)


def _database(conf: cfg.ConfigOpts) -> DatabaseSettings:
    wanted = conf.database
    return DatabaseSettings(
        connection=Connection(
            socket=wanted.socket,
            host=wanted.host,
            port=wanted.port,
            user=wanted.user,
            password=wanted.password,
            defaults_file=wanted.defaults_file,
        ),
        engine=wanted.engine,
        datadir=_absolute(wanted.datadir, "[database] datadir"),
        os_user=wanted.os_user,
        start_command=_words(wanted.start_command, "start_command"),
        stop_command=_words(wanted.stop_command, "stop_command"),
        start_timeout=wanted.start_timeout,
        parallel=wanted.parallel,
        lock_wait_timeout=wanted.lock_wait_timeout,
        block_commit_limit=wanted.block_commit_limit,
        niceness=Niceness(wanted.nice, wanted.ionice),
        checkpoint_first=wanted.checkpoint_first,
        extra_args=tuple(wanted.extra_args),
    )


def _stream(conf: cfg.ConfigOpts) -> StreamSettings:
    wanted = conf.stream
    return StreamSettings(
        compression=wanted.compression,
        level=wanted.level,
        segment_size=wanted.segment_size,
        workers=wanted.workers,
        no_progress_limit=wanted.no_progress_limit,
        rate_limit=wanted.rate_limit,
    )


def _restore(conf: cfg.ConfigOpts) -> RestoreSettings:
    wanted = conf.restore
    return RestoreSettings(
        use_memory=wanted.use_memory,
        work_dir=_absolute(wanted.work_dir, "[restore] work_dir"),
        download_workers=wanted.download_workers,
    )


def _words(command: str, option: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"[database] {option} does not split into words: {error}", hint="check its quotes") from error
    if not words:
        raise ConfigError(f"[database] {option} is empty", hint="give a command, such as `true`")
    return words


def _absolute(path: str, option: str) -> Path | None:
    if path and not os.path.isabs(path):
        raise ConfigError(f"{option} is not an absolute path: {path}", hint="begin it with a slash")
    return Path(path) if path else None
