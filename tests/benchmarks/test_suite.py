"""A short slice of the suite: real peers at a tiny scale, and that nothing that is wrong looks like a figure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import run_turns, with_slowdown
from benchmarks.experiments import MIB, Turns
from benchmarks.peers.base import Point
from benchmarks.peers.device import Device
from benchmarks.results import Result, Stat, decode
from benchmarks.turns import summarize, take_turns

ROOT = Path(__file__).resolve().parents[2]
LOCAL_MEASURES = {"durable_s", "save_cpu_s", "restore_cold_s", "restore_warm_s", "restore_cpu_s"}
TENSORFLOW_MEASURES = LOCAL_MEASURES | {"blocked_s", "peak_save_bytes", "peak_restore_bytes"}


class Liar(Device):
    """Restores, and other values are there than were saved."""

    is_limit = False

    def check(self) -> None:
        raise AssertionError("the restored values are not the saved ones: [1.0] for [2.0]")


class Dying(Device):
    """Its process ends in the second save."""

    def save(self, round_number: int) -> None:
        if round_number == 1:
            os._exit(9)
        super().save(round_number)


def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "results" / "tiny.json"
    command = [sys.executable, "-m", "benchmarks", "--only", "size", "--rounds", "2", "--size-mib", "2"]
    command += ["--peers", "raw device;tf.train.Checkpoint;ckptflow", "--folder", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("What this cannot show") < done.stdout.index("Its bias") < done.stdout.index("raw device")
    run = decode(out.read_bytes())
    assert run.machine["core_count"] == os.cpu_count()
    assert run.cannot_show
    assert run.bias
    assert [result.peer for result in run.results] == ["raw device", "ckptflow", "tf.train.Checkpoint"]
    for result in run.results:
        assert (result.error, result.rounds, result.size_bytes) == ("", 2, 2 * MIB)
        expected = LOCAL_MEASURES if result.is_limit else TENSORFLOW_MEASURES
        if result.peer == "ckptflow":
            expected = expected | {"save_requests", "restore_requests"}
            # a shard, a receipt, a manifest; the fence, and the root to prune by
            assert result.measures["save_requests"].low >= 5
        assert set(result.measures) == expected
        assert all(0 <= stat.low <= stat.median <= stat.high for stat in result.measures.values())
    assert (tmp_path / "results" / "tiny.html").stat().st_size > 10_000
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"results"}


def _take(tmp_path: Path, name: str) -> Result:
    points = {name: {"url": f"{tmp_path}/place", "size_bytes": MIB, "variable_count": 4}}
    target = f"{__name__}:{name}"
    return take_turns("size", {name: target}, points, rounds=2, logs=str(tmp_path))[0]


@pytest.mark.parametrize(("name", "why"), [("Liar", "are not the saved ones"), ("Dying", "its process ended")])
def test_what_went_wrong_is_an_error_and_no_figure(tmp_path: Path, name: str, why: str) -> None:
    result = _take(tmp_path, name)
    assert why in result.error
    assert not result.measures
    assert not (tmp_path / "place").exists()


def test_a_peer_that_is_not_installed_says_so(tmp_path: Path) -> None:
    points = {"gone": {"url": f"{tmp_path}/place", "size_bytes": MIB, "variable_count": 4}}
    (result,) = take_turns("size", {"gone": "not_installed_here:Peer"}, points, rounds=1, logs=str(tmp_path))
    assert "No module named 'not_installed_here'" in result.error


def test_the_device_takes_all_the_bytes_there_and_back(tmp_path: Path) -> None:
    device = Device(Point(str(tmp_path), 65 * MIB + 5000, 64))
    device.save(0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 65 * MIB + 8192  # whole pages
    device.restore()
    device.close()
    assert not list(tmp_path.iterdir())


def test_the_first_round_is_told_apart_and_not_counted() -> None:
    stats = summarize([{"blocked_s": 9.0}, {"blocked_s": 1.0}, {"blocked_s": 3.0}, {"blocked_s": 2.0}])
    assert stats == {"blocked_s": Stat(2.0, 1.0, 3.0, 9.0)}


def test_slowdown_is_against_training_without_saves() -> None:
    results = [
        Result("training", peer, "local", MIB, 4, 1, measures={"step_s": Stat(step, step, 2 * step)})
        for peer, step in (("no saves", 1.0), ("ckptflow", 1.25))
    ]
    without, ours = with_slowdown(results)
    assert "slowdown" not in without.measures
    assert ours.measures["slowdown"] == Stat(0.25, 0.25, 1.5)


def test_what_would_take_too_long_is_named(tmp_path: Path) -> None:
    point = Turns("variables", "local", MIB, 10**6, 1, {})
    results = run_turns(point, str(tmp_path), str(tmp_path), ["Orbax async"])
    assert [(result.peer, bool(result.error)) for result in results] == [("Orbax async", True)]
