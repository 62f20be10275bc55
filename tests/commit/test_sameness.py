"""Workers that hold different things are told which, and on whom, all of them."""

from __future__ import annotations

import pytest

from ckptflow.commit.sameness import checksum, raise_differences
from ckptflow.errors import UsageError
from tests.peers.members import Member, together

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


def test_the_chief_alone_holds_very_much() -> None:
    """As when the optimizer is built on the chief alone."""
    lines = sorted(f"v{i:05}: float32 ()" for i in range(20_000))
    (message, *_) = raised([lines, lines[:4], lines[:2], lines[:4]])
    assert "Worker 0 has v00002: float32 () (not on worker 2); v00003: float32 () (not on worker 2); " in message
    assert "; v00004: float32 () (not on workers 1, 2, 3); " in message
    assert "v00007: float32 () (not on workers 1, 2, 3) and at least 19992 more. Make the same objects" in message


def test_what_is_sent_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers but the chief get no more of a worker than this, and compare nothing."""
    sizes: list[int] = []
    exchange = Member.exchange

    def measured(member: Member, message: bytes, call: str) -> list[bytes]:
        sizes.append(len(message) if member.worker else 0)
        return exchange(member, message, call)

    monkeypatch.setattr(Member, "exchange", measured)
    raised([[f"v{i:05}: float32 ()" for i in range(20_000)], [f"w{i:05}: float32 ()" for i in range(20_000)]])
    assert max(sizes) < 1000


def test_workers_that_have_the_same_are_named_together() -> None:
    (message, *_) = raised([COMMON, *[[*COMMON, "extra: int64 ()"]] * 11, [*COMMON, "odd: int64 ()"]])
    assert "Worker 12 has odd: int64 () (not on worker 0). Workers 1, 2, 3, 4, 5, 6, 7, 8 and 3 more have" in message


def test_checksums() -> None:
    assert checksum(COMMON) == checksum(COMMON[::-1])
    assert checksum(COMMON) != checksum(COMMON[1:])
