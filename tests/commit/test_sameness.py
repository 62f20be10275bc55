"""Workers that hold different things are told which, and on whom, all of them."""

from __future__ import annotations

from ckptflow.commit.sameness import checksum, raise_differences
from ckptflow.errors import UsageError
from tests.peers.members import together

COMMON = [f"model/layer_{i}/kernel: float32 (3, {i})" for i in range(50)]


def raised(lines: list[list[str]]) -> list[str]:
    """What each worker raises."""
    errors = together(lambda member: raise_differences(member, lines[member.worker]), len(lines))
    assert [type(error) for error in errors] == [UsageError] * len(lines), errors
    return [str(error) for error in errors]


def test_what_is_there_and_not_there_is_named_on_all() -> None:
    messages = raised([COMMON, [*COMMON, "extra: int64 ()"], COMMON[1:]])
    assert len(set(messages)) == 1
    assert "Worker 0 has model/layer_0/kernel: float32 (3, 0) (not on worker 2)." in messages[0]
    assert "Worker 1 has extra: int64 () (not on worker 0)" in messages[0]
    assert "layer_1/" not in messages[0]
    assert "Worker 2" not in messages[0]


def test_another_shape_is_a_difference_on_both_sides() -> None:
    (message, _) = raised([["v: float32 (3,)"], ["v: float32 (4,)"]])
    assert "Worker 0 has v: float32 (3,) (not on worker 1). Worker 1 has v: float32 (4,) (not on worker 0)" in message


def test_a_worker_with_nothing_and_one_with_very_much() -> None:
    (message, _) = raised([[], [f"v{i:04}: float32 ()" for i in range(3000)]])
    assert "v0005: float32 () (not on worker 0) and 2994 more" in message


def test_checksums() -> None:
    assert checksum(COMMON) == checksum(COMMON[::-1])
    assert checksum(COMMON) != checksum(COMMON[1:])
