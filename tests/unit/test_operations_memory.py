"""How much memory is to be had: the host's, or less where a control group has a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestagent.operations import memory

GIB = 1 << 30


class Machine:
    """The files that the kernel would show."""

    def __init__(self, top: Path) -> None:
        self.proc, self.groups = top / "proc", top / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.groups.mkdir()
        (self.proc / "meminfo").write_text(f"MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable:   {8 * GIB >> 10} kB\n")
        self.belongs("0::/")

    def belongs(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, path: str, **files: object) -> None:
        (self.groups / path).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.groups / path / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(memory, "PROC", made.proc)
    monkeypatch.setattr(memory, "GROUPS", made.groups)
    return made


def test_of_a_host_without_limits_it_is_what_the_kernel_calls_available(machine: Machine) -> None:
    assert memory.available() == 8 * GIB


def test_a_group_leaves_its_limit_less_its_use_and_the_cache_makes_room(machine: Machine) -> None:
    machine.belongs("0::/system.slice/guestagent.service")
    stat = f"anon 5\ninactive_file {GIB}\nactive_file 7"
    machine.group("system.slice/guestagent.service", memory__max=4 * GIB, memory__current=2 * GIB, memory__stat=stat)
    assert memory.available() == 3 * GIB


@pytest.mark.parametrize("name", ["memory__max", "memory__high"])
def test_the_lowest_limit_of_all_groups_above_counts(machine: Machine, name: str) -> None:
    machine.belongs("0::/a/b")
    machine.group("a/b", memory__max="max", memory__high="max", memory__current=GIB)
    machine.group("a", **{name: 2 * GIB}, memory__current=GIB + 5)
    assert memory.available() == GIB - 5


def test_the_first_version_of_control_groups_is_understood(machine: Machine) -> None:
    machine.belongs("9:cpu,cpuacct:/x", "4:memory:/box", "0::/")
    stat = f"cache 5\ntotal_inactive_file {GIB // 2}"
    machine.group("memory/box", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB, memory__stat=stat)
    machine.group("memory", memory__limit_in_bytes=(1 << 63) - 4096, memory__usage_in_bytes=GIB)
    assert memory.available() == GIB + GIB // 2


def test_a_container_that_sees_its_own_group_as_the_root_is_limited_by_it(machine: Machine) -> None:
    machine.belongs("0::/docker/0123")
    machine.group("", memory__max=GIB, memory__current=5)
    assert memory.available() == GIB - 5


def test_nothing_is_left_rather_than_less_than_nothing(machine: Machine) -> None:
    machine.group("", memory__max=GIB, memory__current=2 * GIB)
    assert memory.available() == 0
