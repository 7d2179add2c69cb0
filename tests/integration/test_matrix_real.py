"""Two cases of the matrix on a real server with the real tool, by the commands; more are played by hand or by seed."""

from __future__ import annotations

from tests.torture.matrix_cases import Case
from tests.torture.matrix_real import run

CASES = (
    "incremental s3 sealed cli put-segment@1*2:reset-in put-manifest@1*1:lost-ack",
    "replace s3 sealed cli get@5*0:reset-answer",
)


def test_a_command_on_a_store_that_goes_wrong() -> None:
    taken, restored = run(map(Case.parse, CASES), lambda _: None)
    assert (taken.wrong, restored.wrong) == ([], []), (taken, restored)
    assert (taken.ended, restored.ended) == ("completed", "status 8")
    assert taken.struck
    assert restored.struck
