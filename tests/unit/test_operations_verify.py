"""The verify story: every byte of a whole chain, and the first wrong object named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from guestagent.errors import Cancelled, ChainBroken, Corrupt, GuestagentError, NotFound
from guestagent.manifest import Backup
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from tests.fakes.bench import Bench, CancelAt, Told, new_id


def flip(path: Path) -> None:
    """Turn one bit in the middle of an object."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def failing(bench: Bench, backup: Backup) -> GuestagentError:
    before = bench.objects()
    with pytest.raises(GuestagentError) as failed:
        verify(bench.host(), backup.id, Watch())
    assert bench.objects() == before
    return failed.value


def test_a_whole_chain_is_read_once(bench: Bench) -> None:
    links = [link for link, _ in bench.chain(3)]
    told = Told()
    assert list(verify(bench.host(), links[-1].id, Watch(told))) == links
    size = sum(link.manifest.stored_size for link in links)
    assert told.phases == [("verify 1/3", size)]
    assert told.moved == {"verify 1/3": size}


@pytest.mark.parametrize("link", [0, 1, 2])
def test_one_bit_in_any_segment_of_any_link(bench: Bench, link: int) -> None:
    links = [link for link, _ in bench.chain(3)]
    for segment in links[link].manifest.segments:
        name = f"data/{segment.index:08d}"
        path = bench.object(links[link], name)
        whole = path.read_bytes()
        flip(path)
        failed = failing(bench, links[-1])
        assert type(failed) is Corrupt
        assert f"{links[link].location}/{name} is not what the manifest promises" in failed.what
        path.unlink()
        assert f"{links[link].location}/{name} is missing" in failing(bench, links[-1]).what
        path.write_bytes(whole)
    assert len(verify(bench.host(), links[-1].id, Watch())) == 3


def test_a_manifest_that_promises_more_files_than_there_are(bench: Bench) -> None:
    ((taken, _),) = bench.chain(1)
    made = replace(taken.manifest, stream=replace(taken.manifest.stream, files=99))
    bench.object(taken, "manifest.json").write_bytes(made.to_bytes())
    assert "end 12 files and the manifest has 99" in failing(bench, taken).what


def test_segments_that_are_the_manifests_and_hold_no_stream(bench: Bench) -> None:
    ((taken, _),) = bench.chain(1)
    made = replace(taken.manifest, compression="none")
    bench.object(taken, "manifest.json").write_bytes(made.to_bytes())
    failed = failing(bench, taken)
    assert type(failed) is Corrupt
    assert f"of backup {taken.id}" in failed.what


def test_a_chain_that_is_broken_and_a_backup_that_is_not_there(bench: Bench) -> None:
    links = [link for link, _ in bench.chain(2)]
    bench.catalog().delete(links[0])
    assert type(failing(bench, links[1])) is ChainBroken
    assert type(failing(bench, links[0])) is NotFound
    with pytest.raises(NotFound):
        verify(bench.host(), new_id(), Watch())


@pytest.mark.parametrize("at_byte", [False, True])
def test_a_cancel(bench: Bench, at_byte: bool) -> None:
    ((taken, _),) = bench.chain(1)
    with pytest.raises(Cancelled, match="the test says so"):
        verify(bench.host(), taken.id, CancelAt("verify", at_byte=at_byte).watch())
