"""The options of the server: how it is reached, started and stopped, and how it is dumped."""

from __future__ import annotations

from oslo_config import cfg, types

from guestagent.options.kinds import reloaded

DATABASE = reloaded(
    cfg.StrOpt(
        "engine",
        default="auto",
        choices=[
            ("auto", "ask the server: mariabackup for MariaDB, xtrabackup for MySQL and Percona Server"),
            ("mariabackup", "MariaDB 10.x and 11.x"),
            ("xtrabackup", "Percona XtraBackup 8.0 and 8.4"),
        ],
        help="Backup tool that takes new backups. A restore always uses the tool that its manifest names.",
    ),
    cfg.StrOpt(
        "socket",
        default="",
        help="Path of the server's UNIX socket. Empty: the tool's and the client's own default, unless host is set.",
    ),
    cfg.StrOpt(
        "host",
        default="",
        help="Name or address of the server for TCP; must be this host, since the tool reads the files of the server. "
        "Set either this or socket.",
    ),
    cfg.PortOpt("port", default=3306, min=1, help="TCP port of the server; used with host only."),
    cfg.StrOpt("user", default="", help="Account that takes backups. Empty: as defaults_file has it."),
    cfg.StrOpt(
        "password",
        default="",
        secret=True,
        help="Password of that account. It reaches the tool through an option file of mode 0600, never through "
        "arguments. Write every $ as $$, here as in all options.",
    ),
    cfg.StrOpt(
        "defaults_file",
        default="",
        help="Option file of the server's own kind that is read first, such as /etc/mysql/debian.cnf. Options set "
        "here win over it.",
    ),
    cfg.StrOpt(
        "datadir",
        default="",
        help="Data directory of the server. Empty: ask the running server. Needed for a restore in place while no "
        "server runs.",
    ),
    cfg.StrOpt("os_user", default="mysql", help="Unix user that owns a restored data directory."),
    cfg.StrOpt(
        "start_command",
        default="systemctl start mariadb",
        help="Command that starts the server, split into words as a shell would, and run without a shell. After a "
        "restore, MYSQLD_OPTS in its environment holds the options that keep events and replication off: the units of "
        "MariaDB and MySQL hand them to the server, and a command of your own has to. They reach systemctl through "
        "its set-environment.",
    ),
    cfg.StrOpt(
        "stop_command",
        default="systemctl stop mariadb",
        help="Command that stops the server, split and run as start_command is.",
    ),
    cfg.IntOpt(
        "start_timeout",
        default=300,
        min=1,
        help="Seconds that a restored server has to answer after its start. Recovery of a big redo log takes long.",
    ),
    cfg.IntOpt(
        "parallel",
        default=0,
        min=0,
        max=64,
        help="Threads with which the tool reads data files. 0: chosen from the number of processors, at most 4.",
    ),
    cfg.IntOpt(
        "lock_wait_timeout",
        default=60,
        min=0,
        help="Seconds that the tool waits for a lock, and other sessions queue up behind it; then the backup fails. 0: "
        "without end.",
    ),
    cfg.IntOpt(
        "block_commit_limit",
        default=60,
        min=0,
        help="Seconds without a byte after which a backup is given up while the tool has stopped the server's commits, "
        "as it does for a moment near its end. 0: as at any other time, [stream] no_progress_limit.",
    ),
    cfg.IntOpt(
        "nice",
        default=0,
        min=0,
        max=19,
        help="How much the tool gives way to other processes where they compete for the processor, in its backups and "
        "its prepares: added to the niceness of the agent. 0: as the agent.",
    ),
    cfg.Opt(
        "ionice",
        type=types.String(
            regex=r"^(|idle|best-effort:[0-7])$", type_name="the word idle, or best-effort:0 to best-effort:7"
        ),
        default="",
        help="How the tool gives way to other processes where they compete for the disk: only when it is idle, or by "
        "a level, of which 7 gives way most and 4 is usual. The disk's scheduler has to know such classes, as bfq and "
        "mq-deadline do. Empty: as the agent.",
    ),
    cfg.StrOpt(
        "checkpoint_first",
        default="never",
        choices=[
            ("never", "the tool begins at the server's last checkpoint, and carries all redo since then"),
            ("incremental", "the server makes a checkpoint before each incremental"),
            ("always", "the server makes a checkpoint before each backup"),
        ],
        help="Whether the server is told to write out all changed pages right before a backup, so that this carries "
        "less redo: a burst of writes to its disk. The server must be MariaDB, and the account needs SUPER. A server "
        "that is written to heavily and without pause goes on with it for minutes, and cannot be told to stop.",
    ),
    cfg.ListOpt(
        "extra_args",
        default=[],
        item_type=types.String(quotes=True),
        help="Further arguments for the tool's backup, separated by commas; put one that has a comma into double "
        "quotes. They show in the process list, so never a secret.",
    ),
)
