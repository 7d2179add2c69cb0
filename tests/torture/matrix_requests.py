"""How many requests of each kind the stories of the matrix make of a store that does not fail: measured, and tested.

What they make of the others, since they have failed before, is not here.
"""

from __future__ import annotations

from collections.abc import Mapping

_MEASURED = """
full file plain cli+rpc: 6 put-segment, 1 put-manifest, 2 get, 1 list
incremental file plain cli+rpc: 6 put-segment, 1 put-manifest, 5 get, 3 list
restore file plain cli: 15 get, 15 list
restore file plain rpc: 14 get, 2 list
replace file plain cli+rpc: 15 get, 15 list
verify file plain cli+rpc: 14 get
delete file plain cli: 4 get, 42 list, 7 delete
delete file plain rpc: 4 get, 26 list, 7 delete
refused-delete file plain cli+rpc: 3 get, 9 list
full file sealed cli+rpc: 1 put-key, 6 put-segment, 1 put-manifest, 3 get, 1 list
incremental file sealed cli+rpc: 1 put-key, 6 put-segment, 1 put-manifest, 9 get, 3 list
restore file sealed cli+rpc: 16 get, 2 list
replace file sealed cli+rpc: 16 get, 2 list
verify file sealed cli+rpc: 16 get
delete file sealed cli: 8 get, 46 list, 9 delete
delete file sealed rpc: 8 get, 26 list, 9 delete
refused-delete file sealed cli+rpc: 6 get, 9 list
rotate file sealed cli: 4 put-key, 20 get, 15 list, 2 delete
full s3 plain cli+rpc: 6 put-segment, 1 put-manifest, 1 get, 2 head, 1 list
incremental s3 plain cli+rpc: 6 put-segment, 1 put-manifest, 4 get, 2 head, 3 list
restore s3 plain cli: 14 get, 1 head, 3 list
restore s3 plain rpc: 14 get, 2 list
replace s3 plain cli+rpc: 14 get, 1 head, 3 list
verify s3 plain cli+rpc: 14 get
delete s3 plain cli+rpc: 4 get, 3 list, 2 delete
refused-delete s3 plain cli+rpc: 3 get, 2 list
full s3 sealed cli+rpc: 1 put-key, 6 put-segment, 1 put-manifest, 2 get, 2 head, 1 list
incremental s3 sealed cli+rpc: 1 put-key, 6 put-segment, 1 put-manifest, 8 get, 2 head, 3 list
restore s3 sealed cli+rpc: 16 get, 2 list
replace s3 sealed cli+rpc: 16 get, 2 list
verify s3 sealed cli+rpc: 16 get
delete s3 sealed cli+rpc: 8 get, 3 list, 2 delete
refused-delete s3 sealed cli+rpc: 6 get, 2 list
rotate s3 sealed cli: 4 put-key, 20 get, 2 head, 1 list, 2 delete
"""


def _read(line: str) -> dict[tuple[str, str, str, str], dict[str, int]]:
    words, _, counts = line.partition(": ")
    story, store, sealed, faces = words.split()
    made = {kind: int(number) for number, kind in map(str.split, counts.split(", "))}
    return {(story, store, sealed, face): made for face in faces.split("+")}


REQUESTS: Mapping[tuple[str, str, str, str], Mapping[str, int]] = {
    key: made for line in _MEASURED.split("\n") if line for key, made in _read(line).items()
}
"""By story, store, ``sealed`` or ``plain``, and face."""
