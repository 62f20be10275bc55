"""A short slice of the suite: real peers at a tiny scale, and that nothing that is wrong looks like a figure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from benchmarks import experiments, tables
from benchmarks.__main__ import _groups, run_turns
from benchmarks.experiments import MIB, Turns
from benchmarks.peers import tuned
from benchmarks.peers.base import Digests, Peer, Places, Point
from benchmarks.peers.clients import Device
from benchmarks.process import do_round
from benchmarks.results import Result, Stat, decode
from benchmarks.turns import summarize, take_turns
from tests.benchmarks import runs
from tests.waiting import HANG_S, until

ROOT = Path(__file__).resolve().parents[2]
LOCAL_MEASURES = {"durable_s", "save_cpu_s", "restore_cold_s", "restore_warm_s", "restore_cpu_s"}
TENSORFLOW_MEASURES = LOCAL_MEASURES | {"blocked_s", "peak_save_bytes", "peak_restore_bytes"}


class Honest(Peer):
    """Saves a copy in memory."""

    def __init__(self, point: Point) -> None:
        self.state = [np.zeros(1000, np.float32) for _ in range(4)]
        self.saved = self.state
        self.digests = Digests(lambda: self.state)

    def change(self) -> None:
        for value in self.state:
            value += 1
        self.digests.remember()

    def save(self, round_number: int) -> None:
        self.saved = [value.copy() for value in self.state]

    def spoil(self) -> None:
        for value in self.state:
            value[:] = 0

    def restore(self) -> None:
        self.state = [value.copy() for value in self.saved]

    def check(self) -> None:
        self.digests.compare()


class Liar(Honest):
    """One value in the middle comes back as another."""

    def restore(self) -> None:
        super().restore()
        self.state[2][500] = np.nextafter(self.state[2][500], np.float32(9))


class Unproven(Honest):
    """All its rounds are well, and what it shows at the end is not."""

    def measure(self, number: int) -> dict[str, float]:
        return {"step_s": 1.0}

    def prove(self) -> None:
        self.change()
        self.check()
        self.spoil()
        self.check()


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
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=HANG_S)
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
        assert result.is_limit == (result.peer in experiments.LIMITS)
        if result.peer == "ckptflow":
            expected = expected | {"save_requests", "restore_requests", "save_sent_bytes", "restore_read_bytes"}
            assert 2 * MIB < result.measures["save_sent_bytes"].median < 2.1 * MIB
            assert 2 * MIB < result.measures["restore_read_bytes"].median < 2.1 * MIB
            # a shard, a receipt, a manifest; the fence, and the root to prune by
            assert result.measures["save_requests"].low >= 5
        assert set(result.measures) == expected
        assert all(0 <= stat.low <= stat.median <= stat.high for stat in result.measures.values())
    assert (tmp_path / "results" / "tiny.html").stat().st_size > 10_000
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"results"}


def test_an_interrupted_run_leaves_nothing_but_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--only", "size", "--rounds", "100000", "--size-mib", "1"]
    command += ["--peers", "raw device", "--folder", str(tmp_path), "--out", str(out)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed)
    until(lambda: list(tmp_path.glob("ckptflow-bench-*/0/*-0")), HANG_S)  # in the middle of a round
    children = psutil.Process(run.pid).children()
    assert children
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=HANG_S) != 0
    assert not list(tmp_path.iterdir())
    assert not any(child.is_running() for child in children)


def _take(tmp_path: Path, name: str) -> Result:
    points = {name: {"url": f"{tmp_path}/place", "size_bytes": MIB, "variable_count": 4}}
    target = f"{__name__}:{name}"
    return take_turns("size", {name: target}, points, rounds=2, logs=str(tmp_path))[0]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Liar", "1 of 4 restored variables are not the saved ones: [2]"),
        ("Unproven", "4 of 4 restored variables are not the saved ones"),
        ("Dying", "its process ended"),
    ],
)
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
    device.save(1)
    device.tidy()
    assert {path.name for path in tmp_path.iterdir()} == {
        "1-0",
        "1-1",
    }  # new files; the old ones go outside of the save
    device.close()
    assert not list(tmp_path.iterdir())


def test_the_first_round_is_told_apart_and_not_counted() -> None:
    stats = summarize([{"blocked_s": 9.0}, {"blocked_s": 1.0}, {"blocked_s": 3.0}, {"blocked_s": 2.0}])
    assert stats == {"blocked_s": Stat(2.0, 1.0, 3.0, 9.0)}


def test_memory_is_that_of_the_first_save() -> None:
    """A pool that is taken then and kept is seen, and what was freed before is not held against anybody."""

    class Keeping(Honest):
        kept: np.ndarray[Any, Any] | None = None

        def change(self) -> None:
            super().change()
            freed = [np.ones(20_000, np.uint8) for _ in range(5_000)]  # below what malloc maps by itself
            assert len(freed) == 5_000

        def save(self, round_number: int) -> None:
            super().save(round_number)
            if self.kept is None:
                self.kept = np.ones(64 * MIB, np.uint8)

    point = Point("", MIB, 4, storage="memory", restores=("warm",))
    peer = Keeping(point)
    rounds = [do_round(peer, point, number) for number in range(3)]
    assert ["peak_save_bytes" in each for each in rounds] == [True, False, False]
    stats = summarize(rounds)
    assert 60 * MIB < stats["peak_save_bytes"].median < 70 * MIB
    assert 60 * MIB < stats["peak_restore_bytes"].median < 70 * MIB


def test_a_save_leaves_one_place(tmp_path: Path) -> None:
    places = Places(str(tmp_path), ".h5")
    for _ in range(3):
        os.makedirs(os.path.dirname(places.next()))
        Path(places.now).write_text("saved")
        places.remove_old()
    assert [str(path) for path in tmp_path.rglob("*.h5")] == [places.now]


@pytest.mark.parametrize("option", [["--only", "sizes"], ["--peers", "raw device,ckptflow"]])
def test_what_is_not_there_is_an_error(option: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks", *option]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=HANG_S)
    assert done.returncode == 2
    assert f"no '{option[1]}' here; there are: " in done.stderr


def test_peers_that_memory_does_not_hold_together_take_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Turns("size", "local", 1024 * MIB, 64, 1, {})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6 * 1024 * MIB))
    names = ["raw device", "raw device, two at once", "ckptflow", "tf.train.Checkpoint"]
    assert _groups(names, point) == [names]
    names.append("Orbax async")
    assert _groups(names, point) == [[name] for name in names]


@pytest.mark.parametrize("name", list(experiments.TRAINING))
def test_training_is_measured_with_saves_and_without(tmp_path: Path, name: str) -> None:
    point = Turns("training", "local", MIB, 4, 2, {"threads": 1, "batch": 4})
    (result,) = run_turns(point, str(tmp_path), str(tmp_path), [name])
    assert result.error == ""
    assert set(result.measures) == {"step_s", "plain_step_s", "slowdown", "blocked_s"}


@pytest.mark.parametrize(("work", "share"), [("frozen", 0.05), ("lora", 0.06), ("embedding", 0.2), ("all", 1.0)])
def test_models_have_the_size_and_the_share_that_their_rows_say(work: str, share: float) -> None:
    made = tuned.build(work, MIB)
    made.step()  # makes the optimizer's slots, and changes only one adapter of each pair
    before = [np.asarray(variable).copy() for variable in made.variables]
    made.step()
    sizes = [array.nbytes for array in before]
    assert sum(sizes) == pytest.approx(MIB, rel=0.1)
    pairs = zip(before, made.variables, strict=True)
    changed = sum(was.nbytes for was, now in pairs if not np.array_equal(was, np.asarray(now)))
    assert changed / sum(sizes) == pytest.approx(share, rel=0.2)


def test_saves_while_a_part_is_trained_are_told_one_by_one(tmp_path: Path) -> None:
    point = Turns("unchanged", "local", MIB, 0, 5, {"work": "frozen"})
    (result,) = run_turns(point, str(tmp_path), str(tmp_path), ["ckptflow, all sent"])
    assert result.error == ""
    assert {"save_1_s", "save_2_s", "save_3_s", "save_restarted_s", "stored_bytes", "peak_save_bytes"} <= set(
        result.measures
    )
    sent = result.measures["save_sent_bytes"]
    assert sent.first == pytest.approx(MIB, rel=0.1)
    assert sent.median == pytest.approx(MIB, rel=0.1)
    assert result.measures["stored_bytes"].median == pytest.approx(5 * sent.median, rel=0.1)
    text = StringIO()
    tables.print_run(Console(file=text, width=200), runs.run(result))
    assert "95 % frozen" in text.getvalue()
    assert "after restart" in text.getvalue()


def test_what_would_take_too_long_is_named(tmp_path: Path) -> None:
    point = Turns("variables", "local", MIB, 10**6, 1, {})
    results = run_turns(point, str(tmp_path), str(tmp_path), ["Orbax async"])
    assert [(result.peer, bool(result.error)) for result in results] == [("Orbax async", True)]
