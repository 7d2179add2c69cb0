"""What the tools wrote, recorded and then broken in every way that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestagent.engines import DumpFacts, facts
from guestagent.errors import ToolError
from guestagent.model import MAX_LSN, Binlog, Checkpoints, Lsn

RECORDED = Path(__file__).parent / "recorded"
MARIABACKUP = RECORDED / "mariabackup-10.11"
XTRABACKUP = RECORDED / "xtrabackup-8.0"
CHECKPOINTS, INFO = "xtrabackup_checkpoints", "xtrabackup_info"


def files_of(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def lsns(begin: int, end: int, last: int) -> Checkpoints:
    return Checkpoints(begin=Lsn(begin), end=Lsn(end), last=Lsn(last))


def test_a_full_of_mariabackup() -> None:
    assert facts.dump_facts(files_of(MARIABACKUP / "full")) == DumpFacts(
        checkpoints=lsns(0, 219838, 220123),
        tool_version="10.11.19-MariaDB",
        server_version="10.11.19-MariaDB-0+deb12u1-log",
        binlog=Binlog(file="binlog.000001", position=1164, gtid="0-1-5"),
    )


def test_incrementals_of_mariabackup_continue_each_other() -> None:
    first = facts.dump_facts(files_of(MARIABACKUP / "incremental")).checkpoints
    second = facts.dump_facts(files_of(MARIABACKUP / "second-incremental")).checkpoints
    assert (first, second) == (lsns(219838, 225361, 225445), lsns(225361, 232470, 232690))


def test_the_names_of_mariadb_11() -> None:
    old = files_of(MARIABACKUP / "full")
    new = {name.replace("xtrabackup_", "mariadb_backup_"): text for name, text in old.items()}
    assert facts.dump_facts(new) == facts.dump_facts(old)


@pytest.mark.parametrize(
    ("directory", "binlog"),
    [
        (MARIABACKUP / "binlog-off", None),
        (MARIABACKUP / "two-gtid-domains", Binlog(file="binlog.000002", position=477, gtid="0-1-8,7-1-1")),
        (XTRABACKUP / "full", Binlog(file="binlog.000003", position=157, gtid="")),
        (XTRABACKUP / "incremental", None),
        (
            XTRABACKUP / "gtid",
            Binlog(
                file="binlog.000005",
                position=88991,
                gtid="0a1b2c3d-0001-11f1-8ce6-02fc00000001:1-3,0a1b2c3d-0002-11f1-a7c6-02fc00000002:1-3:7,"
                "0a1b2c3d-0003-11f1-b48b-02fc00000003:1-1529",
            ),
        ),
    ],
)
def test_where_the_binary_log_stood(directory: Path, binlog: Binlog | None) -> None:
    assert facts.dump_facts(files_of(directory)).binlog == binlog


def test_what_follows_a_gtid_set_of_several_lines_is_still_read() -> None:
    files = files_of(XTRABACKUP / "gtid")
    files[INFO] = files[INFO].replace("tool_version = 8.0.35-31\n", "") + "tool_version = 8.4.0-2\n"
    assert facts.dump_facts(files).tool_version == "8.4.0-2"


def test_a_binary_log_without_a_name_is_off() -> None:
    assert facts.dump_facts(info_with("binlog_pos = filename '', position '0'")).binlog is None


@pytest.mark.parametrize(
    ("directory", "lsn"),
    [
        (MARIABACKUP / "prepared", 219838),
        (MARIABACKUP / "prepared-incremental", 225361),
        (MARIABACKUP / "prepared-second-incremental", 232470),
        (XTRABACKUP / "apply-log-only", 30304090),
        (XTRABACKUP / "prepared", 36199564),
    ],
)
def test_how_far_a_base_is_prepared(directory: Path, lsn: int) -> None:
    assert facts.prepared_to(files_of(directory)) == lsn


@pytest.mark.parametrize("directory", [MARIABACKUP / "full", MARIABACKUP / "incremental", XTRABACKUP / "full"])
def test_a_directory_that_is_not_prepared_is_none(directory: Path) -> None:
    with pytest.raises(
        ToolError, match=r"_checkpoints line 1: backup_type is .*, not one of full-prepared, log-applied"
    ):
        facts.prepared_to(files_of(directory))


def test_a_prepared_directory_is_no_dump() -> None:
    files = {**files_of(MARIABACKUP / "full"), **files_of(MARIABACKUP / "prepared")}
    with pytest.raises(ToolError, match="backup_type is 'log-applied', not one of full-backuped, incremental"):
        facts.dump_facts(files)


@pytest.mark.parametrize("missing", [CHECKPOINTS, INFO])
def test_a_file_that_is_missing(missing: str) -> None:
    files = files_of(MARIABACKUP / "full")
    del files[missing]
    with pytest.raises(ToolError, match=f"neither mariadb_backup_[a-z]+ nor {missing} was written"):
        facts.dump_facts(files)


@pytest.mark.parametrize("key", ["backup_type", "from_lsn", "to_lsn", "last_lsn"])
def test_checkpoints_without_a_key(key: str) -> None:
    lines = [line for line in files_of(MARIABACKUP / "full")[CHECKPOINTS].splitlines() if not line.startswith(key)]
    with pytest.raises(ToolError, match=f"xtrabackup_checkpoints: no {key}; the tool did not write it to the end"):
        facts.dump_facts({**files_of(MARIABACKUP / "full"), CHECKPOINTS: "\n".join(lines)})


@pytest.mark.parametrize(
    "text", ["", "\n\n", "backup_type = full-back", "backup_type = full-backuped\nfrom_lsn = 0\nto_l"]
)
def test_checkpoints_cut_short(text: str) -> None:
    with pytest.raises(ToolError, match="xtrabackup_checkpoints"):
        facts.dump_facts({**files_of(MARIABACKUP / "full"), CHECKPOINTS: text})


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("from_lsn = 1", "line 2: from_lsn is '1', and a full begins at 0"),
        ("to_lsn = ", "line 3: to_lsn is '', not an LSN"),
        ("to_lsn = -1", "line 3: to_lsn is '-1', not an LSN"),
        ("to_lsn = 0x10", "line 3: to_lsn is '0x10', not an LSN"),
        ("to_lsn = 1 2", "line 3: to_lsn is '1 2', not an LSN"),
        ("to_lsn = ١٢", "line 3: to_lsn is '١٢', not an LSN"),
        (f"to_lsn = {MAX_LSN + 1}", f"line 3: to_lsn is '{MAX_LSN + 1}', not an LSN"),
        ("last_lsn = 219837", "line 4: last_lsn is '219837', before to_lsn 219838"),
    ],
)
def test_checkpoints_with_a_wrong_number(line: str, wrong: str) -> None:
    with pytest.raises(ToolError) as caught:
        facts.dump_facts(checkpoints_with(line))
    assert caught.value.what == f"xtrabackup_checkpoints {wrong}"


def test_the_largest_lsn_is_one() -> None:
    found = facts.dump_facts(checkpoints_with(f"last_lsn = {MAX_LSN}"))
    assert found.checkpoints.last == MAX_LSN


def test_an_incremental_that_ends_before_it_begins() -> None:
    files = files_of(MARIABACKUP / "incremental")
    files[CHECKPOINTS] = files[CHECKPOINTS].replace("to_lsn = 225361", "to_lsn = 219837")
    with pytest.raises(ToolError, match="to_lsn is '219837', before from_lsn 219838"):
        facts.dump_facts(files)


def test_an_idle_server_ends_where_it_begins() -> None:
    text = "backup_type = incremental\nfrom_lsn = 7\nto_lsn = 7\nlast_lsn = 7\n"
    found = facts.dump_facts({**files_of(MARIABACKUP / "full"), CHECKPOINTS: text})
    assert found.checkpoints == lsns(7, 7, 7)


def test_a_key_that_comes_twice() -> None:
    files = files_of(MARIABACKUP / "full")
    files[CHECKPOINTS] += "to_lsn = 5\n"
    with pytest.raises(ToolError, match="xtrabackup_checkpoints line 6: a second to_lsn"):
        facts.dump_facts(files)


def test_a_line_before_any_key() -> None:
    files = files_of(MARIABACKUP / "full")
    files[INFO] = "\nNot What You Expect\n" + files[INFO]
    with pytest.raises(ToolError, match="xtrabackup_info line 2: not a key and a value: 'Not What You Expect'"):
        facts.dump_facts(files)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("tool_version = unknown", "line 5: tool_version is 'unknown', not a version"),
        ("server_version = ", "line 7: server_version is '', not a version"),
        ("binlog_pos = binlog.000001:4", "line 11: binlog_pos is 'binlog.000001:4', not a file and a position"),
        ("binlog_pos = filename 'b', position 'x'", None),
        ("binlog_pos = filename 'b', position '4', GTID of the last change 'half", None),
    ],
)
def test_an_info_file_with_a_wrong_value(line: str, wrong: str | None) -> None:
    with pytest.raises(ToolError) as caught:
        facts.dump_facts(info_with(line))
    assert caught.value.what.startswith("xtrabackup_info line ")
    assert wrong is None or caught.value.what == f"xtrabackup_info {wrong}"


@pytest.mark.parametrize("path", [MARIABACKUP / "full", MARIABACKUP / "prepared", XTRABACKUP / "full"])
def test_success_is_in_the_last_line(path: Path) -> None:
    tail = (path / "stderr").read_text().splitlines()
    assert facts.confirmed(tail)
    assert facts.confirmed([*tail, "", "  "])
    assert not facts.confirmed([*tail, "[00] FATAL ERROR: something came after it"])
    assert not facts.confirmed(tail[:-1])


LEFT_OPEN = "\x07mariabackup: Warning: 2 files and 0 streams is left open"
"""As recorded, bell and all, from a prepare whose log of Aria has an OPTIMIZE TABLE."""


@pytest.mark.parametrize("line", [LEFT_OPEN, LEFT_OPEN[1:], LEFT_OPEN.replace("mariabackup", "mariadb-backup")])
def test_files_left_open_after_success_are_no_failure(line: str) -> None:
    tail = (MARIABACKUP / "prepared" / "stderr").read_text().splitlines()
    assert facts.confirmed([*tail, line])
    assert facts.confirmed([*tail, line, ""])
    assert not facts.confirmed([*tail[:-1], line])
    assert not facts.confirmed([line, *tail[:-1]])
    assert not facts.confirmed([line])


@pytest.mark.parametrize(
    "lines",
    [
        [LEFT_OPEN, LEFT_OPEN],
        [LEFT_OPEN, "[00] FATAL ERROR: something came after it"],
        ["[00] FATAL ERROR: something came before it", LEFT_OPEN],
        [LEFT_OPEN.replace("0 streams", "1 streams")],
        [LEFT_OPEN.replace("2 files", "no files")],
        [f"{LEFT_OPEN}, and more"],
        [f"and before it, {LEFT_OPEN}"],
        [LEFT_OPEN.replace("mariabackup", "mariadbd")],
        [LEFT_OPEN.replace("Warning", "Error")],
    ],
)
def test_other_words_after_success_are(lines: list[str]) -> None:
    tail = (MARIABACKUP / "prepared" / "stderr").read_text().splitlines()
    assert not facts.confirmed([*tail, *lines])


def test_silence_and_refusals_confirm_nothing() -> None:
    assert not facts.confirmed([])
    assert not facts.confirmed(["", " "])
    assert not facts.confirmed((MARIABACKUP / "refused-stderr").read_text().splitlines())


def checkpoints_with(line: str) -> dict[str, str]:
    return with_line(CHECKPOINTS, line)


def info_with(line: str) -> dict[str, str]:
    return with_line(INFO, line)


def with_line(name: str, line: str) -> dict[str, str]:
    """The files of a full of mariabackup, with ``line`` in the place of the one with the same key."""
    files = files_of(MARIABACKUP / "full")
    key = line.partition(" ")[0]
    lines = [line if old.startswith(f"{key} ") else old for old in files[name].splitlines()]
    return {**files, name: "\n".join([*lines, ""])}
