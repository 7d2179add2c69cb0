"""A fake of Percona XtraBackup 8.0/8.4, and of mariabackup 10.11 when called by that name.

It talks to no server.  It backs up a small directory as the real tools would stream it (xbstream with chunks of
type P, S and E, mbstream with P and E), writes the files of --extra-lsndir in the tool's own format, and prepares
what was extracted.  As the real ones it wants --defaults-file first and readable, refuses unknown options, ignores
SIGTERM and SIGHUP, says "completed OK!" on stderr, and in a prepare checks nothing but the type and the LSNs.
It passes by what is called #sql..., as mariabackup does.  A file NAME.new of the source is one that a dump brings whole
at its end: prepare makes NAME.ibd of it, as mariabackup does, and fails in the end, without a word, if the base has the
tablespace (bytes 34 to 37) by another name, too.
Its own rule for incrementals: they carry every file of InnoDB whole as NAME.delta (with NAME.meta) and the rest as
it is; prepare moves the deltas over the base, so that they are gone from the incremental directory, and removes
from the schemas of the base what the incremental does not know: a prepared base equals what the last link saw.

What to do, by environment variables:
  FAKE_TOOL_DATADIR   the directory to back up (without it: a few files made up on the spot)
  FAKE_TOOL_LSN       to_lsn (without it: 16000000 for a full, and 5000 more than --incremental-lsn)
  FAKE_TOOL_REDO      how far last_lsn is beyond to_lsn (300)
  FAKE_TOOL_BINLOG    the value of binlog_pos in xtrabackup_info ("": binary log off)
  FAKE_TOOL_VERSION   the tool's version (8.0.35-31; 10.11.19-MariaDB)
  FAKE_TOOL_SERVER    the server's version (8.0.35; 10.11.19-MariaDB-log)
  FAKE_TOOL_CHUNK     the largest payload of a chunk (10485760 as the real ones)
  FAKE_TOOL_SIZE      bytes of a further made-up table, shop/big.ibd (0)
  FAKE_TOOL_NAMES     "mariadb": metadata files are called mariadb_backup_*, as MariaDB 11 does
  FAKE_TOOL_LOG       a file to which every run appends one line of JSON: pid, argv, option_file (text), option_mode

How to misbehave: FAKE_TOOL_FAULT, words separated by commas, in the phase FAKE_TOOL_PHASE (backup, prepare or
version; backup if not set):
  start-exit-1        an error at once, exit 1, nothing written
  table-gone          an error at once, as of mariabackup where a table is dropped while it lists them, exit 1
  half                half of the work, then an error and exit 1
  killed              half of the work, then SIGKILL
  hang                half of the work, then silence until killed
  hang-start          silence from the beginning until killed
  unconfirmed         all of the work, exit 0, no "completed OK!"
  exit-3              all of the work, "completed OK!", exit 3
  words-after         all of the work, exit 0, "completed OK!" and then one more line
  cut                 exit 0 and "completed OK!", but the stream ends inside a chunk
  unended             exit 0 and "completed OK!", but the last file's end chunk is missing
  empty               exit 0 and "completed OK!", but no byte of a stream
  flip                one bit of a payload is not what its CRC says
  no-checkpoints      nothing in --extra-lsndir (of the two files, the checkpoints are missing)
  bad-checkpoints     a checkpoints file that cannot be parsed
  wrong-from          from_lsn is 7 more than was asked for
  behind              to_lsn is 7 less than from_lsn (an incremental against another server)
  loud                10 MB of lines on stderr first
  long-line           one line of 1 MB on stderr first
  binary              bytes on stderr that are not UTF-8
  deaf                SIGINT is ignored, too: only SIGKILL ends it
  waits               (mariabackup) the work, but for its end, and then it waits for a lock until killed
  blocks              the same, but it has got the lock, so that a server would commit nothing
  unmoved             (prepare) the checkpoints of the base stay as they were

Tests run it thousands of times: the program is but a few lines, so that all else is compiled once, and nothing is
imported that takes longer than the work.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping

from tests.fakes.chunks import BLOCK, is_innodb, send
from tests.fakes.manners import (
    MARIABACKUP,
    Failed,
    banner,
    begin,
    block,
    finish,
    go_wrong_halfway,
    knob,
    say,
    timestamp,
    tool_version,
    unblock,
)

COMMON = {
    "no-defaults", "defaults-file", "version", "backup", "prepare", "stream", "target-dir", "extra-lsndir", "parallel",
    "incremental-lsn", "incremental-dir", "use-memory", "user", "password", "socket", "host", "port", "datadir",
    "ftwrl-wait-timeout", "tmpdir", "throttle", "slave-info", "safe-slave-backup", "no-lock", "databases", "tables",
    "open-files-limit", "lock-ddl-per-table",
}  # fmt: skip
OPTIONS = COMMON | (
    {"binlog-info", "rsync", "log-copy-interval", "innodb-log-checkpoint-now"}
    if MARIABACKUP
    else {
        "apply-log-only", "backup-lock-timeout", "backup-lock-retry-count", "lock-ddl", "lock-ddl-timeout", "strict",
        "no-server-version-check", "no-version-check", "register-redo-log-consumer", "page-tracking",
    }
)  # fmt: skip

MADE_UP = {
    "backup-my.cnf": b"[mysqld]\ninnodb_page_size=16384\n",
    "ibdata1": b"system tablespace " * 4000,
    "mysql/general_log.CSV": b"",
    "mysql/plugin.MYD": b"a table that is not InnoDB",
    "shop/orders.ibd": bytes(range(256)) * 64,
    "shop/sparse.ibd": b"x" * BLOCK + bytes(3 * BLOCK) + b"y" * BLOCK + bytes(BLOCK) + b"z" * BLOCK,
    "shop/t@0024 ü.ibd": b"a table with an odd name",
    "empty/db.opt": b"",
}

# -- what was asked


def parsed(argv: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for position, argument in enumerate(argv):
        name, _, value = argument.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not argument.startswith("--") or name not in OPTIONS:
            print(f"{os.path.basename(sys.argv[0])}: unknown option '{argument}'", file=sys.stderr)
            sys.exit(2 if MARIABACKUP else 1)
        if name in {"defaults-file", "no-defaults"} and position:
            raise Failed(f"--{name} must be specified first on the command line")
        options[name] = value
    return options


def read_option_file(options: Mapping[str, str]) -> None:
    path = options.get("defaults-file")
    text, mode = "", 0
    if path is not None:
        try:
            text, mode = read(path).decode(), stat.S_IMODE(os.stat(path).st_mode)
        except OSError:
            print(f"Could not open required defaults file: {path}", file=sys.stderr)
            print("Fatal error in defaults handling. Program aborted", file=sys.stderr)
            sys.exit(1)
    if knob("LOG"):
        import json  # noqa: PLC0415

        entry = {"pid": os.getpid(), "argv": sys.argv, "option_file": text, "option_mode": oct(mode)}
        with open(knob("LOG"), "a") as log:
            log.write(json.dumps(entry) + "\n")


# -- files


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def files_below(top: str) -> list[str]:
    """The names of all files, from ``top``."""
    paths = (os.path.join(place, name) for place, _, names in os.walk(top) for name in names)
    return sorted(os.path.relpath(path, top) for path in paths if os.path.isfile(path))


# -- backup


def backup(options: Mapping[str, str]) -> None:
    wrong = begin("backup")
    if options.get("stream", "").lower() != ("mbstream" if MARIABACKUP else "xbstream"):
        raise Failed(f"unknown stream format: {options.get('stream')!r}")
    os.makedirs(options["target-dir"], exist_ok=True)
    since = int(options["incremental-lsn"]) if "incremental-lsn" in options else None
    say(f"incremental backup from {since} is enabled." if since is not None else "uses posix_fadvise().")
    lsn = lsns(since, wrong)
    facts = metadata(options, since is not None, lsn)
    files = {**contents(since is not None), **{name: text.encode() for name, text in facts.items()}}
    leave_facts(options, facts, wrong)  # before the work: those of a run that fails are there, too
    if "empty" not in wrong:
        send(files, parallel=int(options.get("parallel", "1")), wrong=wrong)
    block(wrong)
    unblock()
    say(f"Redo log (from LSN {lsn[1]} to {lsn[2]}) was copied.")
    finish(wrong)


def lsns(since: int | None, wrong: set[str]) -> tuple[int, int, int]:
    begins = since or 0
    ends = int(knob("LSN") or (16_000_000 if since is None else since + 5_000))
    if "wrong-from" in wrong:
        begins += 7
    if "behind" in wrong:
        ends = begins - 7
    return begins, ends, ends + int(knob("REDO", "300"))


def contents(incremental: bool) -> dict[str, bytes]:
    whole = read_tree(knob("DATADIR")) if knob("DATADIR") else dict(MADE_UP)
    if int(knob("SIZE", "0")):
        import random  # noqa: PLC0415

        whole["shop/big.ibd"] = random.Random(1).randbytes(int(knob("SIZE")))
    whole.setdefault("backup-my.cnf", MADE_UP["backup-my.cnf"])
    whole["ib_logfile0" if MARIABACKUP else "xtrabackup_logfile"] = b"redo log"
    return as_deltas(whole) if incremental else whole


def read_tree(top: str) -> dict[str, bytes]:
    names = (name for name in files_below(top) if not os.path.basename(name).startswith("#sql"))
    found = {name: read(os.path.join(top, name)) for name in names}
    for place in empty_below(top):
        found[f"{place}/db.opt"] = b""
    return dict(sorted(found.items()))


def empty_below(top: str) -> Iterator[str]:
    return (os.path.relpath(place, top) for place, *held in os.walk(top) if place != top and not any(held))


def as_deltas(whole: Mapping[str, bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, data in whole.items():
        if is_innodb(name):
            space = int.from_bytes(data[34:38], "big")
            found[f"{name}.meta"] = b"page_size = 16384\nzip_size = 0 \nspace_id = %d\n" % space
            found[f"{name}.delta"] = data
        else:
            found[name] = data
    return found


def metadata(options: Mapping[str, str], incremental: bool, lsn: tuple[int, int, int]) -> dict[str, str]:
    kind = "incremental" if incremental else "full-backuped"
    return {
        f"{prefix()}_checkpoints": checkpoints(kind, lsn),
        f"{prefix()}_info": info(options, incremental, lsn),
        f"{prefix()}_binlog_info": "binlog.000002\t157\n",
    }


def prefix() -> str:
    return "mariadb_backup" if knob("NAMES") == "mariadb" else "xtrabackup"


def checkpoints(kind: str, lsn: tuple[int, int, int]) -> str:
    begins, ends, last = lsn
    lines = [f"backup_type = {kind}", f"from_lsn = {begins}", f"to_lsn = {ends}", f"last_lsn = {last}"]
    if MARIABACKUP:
        lines += ["recover_binlog_info = 0"]
    else:
        lines += [f"flushed_lsn = {last}", "redo_memory = 0", "redo_frames = 0"]
    return "\n".join([*lines, ""])


def info(options: Mapping[str, str], incremental: bool, lsn: tuple[int, int, int]) -> str:
    now = timestamp(time.time_ns())
    gtid = "0-1-5"
    if not MARIABACKUP:
        gtid = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,\n4e11fa47-71ca-11e1-9e33-c80aa9429562:1-23"
    lines = {
        "uuid": "ab1935c7-e681-11f1-8dac-02fc00000001",
        "name": "",
        "tool_name": "mariabackup" if MARIABACKUP else "xtrabackup",
        "tool_command": " ".join(sys.argv[1:]),
        "tool_version": tool_version(),
        "ibbackup_version": tool_version(),
        "server_version": knob("SERVER", "10.11.19-MariaDB-log" if MARIABACKUP else "8.0.35"),
        "start_time": now,
        "end_time": now,
        "lock_time": "0",
        "binlog_pos": knob("BINLOG", f"filename 'binlog.000002', position '157', GTID of the last change '{gtid}'"),
        "innodb_from_lsn": str(lsn[0]),
        "innodb_to_lsn": str(lsn[1]),
        "partial": "N",
        "incremental": "Y" if incremental else "N",
        "format": options["stream"],
        "compressed": "N",
        **({} if MARIABACKUP else {"encrypted": "N"}),
    }
    return "".join(f"{key} = {value}\n" for key, value in lines.items())


def leave_facts(options: Mapping[str, str], facts: Mapping[str, str], wrong: set[str]) -> None:
    if "extra-lsndir" not in options:
        return
    place = options["extra-lsndir"]
    os.makedirs(place, exist_ok=True)
    for name, text in facts.items():
        if name.endswith("_binlog_info") or (name.endswith("_checkpoints") and "no-checkpoints" in wrong):
            continue
        broken = name.endswith("_checkpoints") and "bad-checkpoints" in wrong
        write(os.path.join(place, name), b"backup_type = full-back" if broken else text.encode())


# -- prepare


def prepare(options: Mapping[str, str]) -> None:
    wrong = begin("prepare")
    base = options["target-dir"]
    say(f"cd to {base}")
    found = read_checkpoints(base)
    kind = found["backup_type"]
    if kind not in {"full-backuped", "log-applied", "full-prepared"}:
        raise Failed("This target does not have correct metadata.")
    if "incremental-dir" in options:
        found = apply_incremental(base, options["incremental-dir"], found, wrong)
    else:
        say("This target seems to be not prepared yet." if kind == "full-backuped" else "already prepared.")
        lay_new(base, base)
        go_wrong_halfway(wrong)
    if "unmoved" not in wrong:
        log_only = MARIABACKUP or "apply-log-only" in options
        write_checkpoints(base, {**found, "backup_type": "log-applied" if log_only else "full-prepared"})
    finish(wrong)


def apply_incremental(base: str, link: str, found: dict[str, str], wrong: set[str]) -> dict[str, str]:
    ready = {"log-applied", "full-prepared"} if MARIABACKUP else {"log-applied"}
    if found["backup_type"] not in ready:
        raise Failed("error: applying incremental backup needs a prepared target.")
    its = read_checkpoints(link)
    if its["backup_type"] != "incremental" or its["from_lsn"] != found["to_lsn"]:
        raise Failed(
            "error: This incremental backup seems not to be proper for the target."
            " Check 'to_lsn' of the target and 'from_lsn' of the incremental."
        )
    twice = lay_new(base, link)
    known = {name.removesuffix(".delta") for name in files_below(link)}
    for name in files_below(base):
        if "/" in name and name not in known:
            os.unlink(os.path.join(base, name))
    take_over(base, link, wrong)
    if twice:
        sys.exit(1)
    return {**found, "to_lsn": its["to_lsn"], "last_lsn": its["last_lsn"]}


def lay_new(base: str, link: str) -> bool:
    """Make tablespaces of the base of what a dump brought whole; gives whether one is there by two names then."""
    if MARIABACKUP:
        for new in (name for name in files_below(link) if name.endswith(".new")):
            path, name = os.path.join(link, new), f"{new.removesuffix('.new')}.ibd"
            say(f"Renaming {path} to ./{name}")
            write(os.path.join(base, name), read(path))
            os.rename(path, os.path.join(link, name))
    spaces = [read(os.path.join(base, name))[34:38] for name in files_below(base) if name.endswith(".ibd")]
    return any(spaces.count(space) > 1 for space in spaces if any(space))


def take_over(base: str, link: str, wrong: set[str]) -> None:
    files = files_below(link)
    for index, name in enumerate(files):
        if index == len(files) // 2:
            go_wrong_halfway(wrong)
        path, target = os.path.join(link, name), os.path.join(base, name.removesuffix(".delta"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if name.endswith(".delta"):
            say(f"Applying {path} to ./{name.removesuffix('.delta')}...")
            os.replace(path, target)
        elif not name.endswith((".meta", "_checkpoints")):
            write(target, read(path))


def checkpoints_file(place: str) -> str:
    for name in ("xtrabackup_checkpoints", "mariadb_backup_checkpoints"):
        if os.path.exists(path := os.path.join(place, name)):
            return path
    raise Failed(f"error: xtrabackup_read_metadata(): no checkpoints in {place}")


def read_checkpoints(place: str) -> dict[str, str]:
    lines = read(checkpoints_file(place)).decode().splitlines()
    return {key: value for key, _, value in (line.partition(" = ") for line in lines)}


def write_checkpoints(base: str, found: Mapping[str, str]) -> None:
    write(checkpoints_file(base), "".join(f"{key} = {value}\n" for key, value in found.items()).encode())


def main() -> None:
    options = parsed(sys.argv[1:])
    read_option_file(options)
    if "version" in options:
        wrong = begin("version")
        print(banner(), file=sys.stderr)
        sys.exit(3 if "exit-3" in wrong else 0)
    print(banner(), file=sys.stderr)
    if "backup" in options:
        backup(options)
    elif "prepare" in options:
        prepare(options)
    raise Failed("no mode given: --backup or --prepare")


def run() -> None:
    try:
        main()
    except (Failed, OSError) as error:
        say(f"[ERROR] {error}")
        sys.exit(1)
