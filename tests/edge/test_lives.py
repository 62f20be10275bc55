"""Jobs that end in the middle of something, and the jobs that come after them."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest
import tensorflow as tf

import ckptflow
import ckptflow.commit.lineage
from ckptflow import CheckpointManager, KeepEvery, KeepLast
from tests.edge import programs
from tests.manager.states import Weights, committed, folders
from tests.processes import run_workers, start_workers, was_killed
from tests.waiting import HANG_S


def verify(root: Path) -> list[int]:
    """The steps that count; every byte of them is read."""
    found = ckptflow.list_checkpoints(root)
    for each in found:
        with ckptflow.open_checkpoint(each.url) as checkpoint:
            assert checkpoint.verify() == []
    return [each.step for each in found]


def test_killed_before_the_receipt_and_in_the_restore(tmp_path: Path) -> None:
    """Three workers, of which one dies between its shards and its receipt; two, of which one dies while it restores;
    two, of which one starts late. All of their clocks differ by hours."""
    root = tmp_path / "run"
    env = {"ROOT": str(root)}
    results = run_workers("tests.edge.programs:dies_between_shards_and_receipt", 3, env=env, check=False)
    assert was_killed(results[2]), results[2].output
    for result in results[:2]:
        assert "told" in result.output, result.output
    left = {file.name for file in (root / "000000000002-i0001").iterdir()}
    assert any(name.startswith("shard-00002-of-00003-0000") for name in left)
    assert not any(name.startswith("receipt-00002") for name in left)
    assert verify(root) == [1]

    results = run_workers("tests.edge.programs:dies_in_the_restore", 2, env=env, check=False)
    assert was_killed(results[1]), results[1].output
    assert "told" in results[0].output, results[0].output
    assert verify(root) == [1]

    results = run_workers("tests.edge.programs:resumes_with_a_late_worker", 2, env=env)
    assert all("well" in result.output for result in results)
    assert verify(root) == [1, 2, 4]  # KeepEvery: the first, the one that a clock has put hours later, the newest
    assert folders(root) == committed(root)  # the partial one of the dead is gone
    claims = sorted((root / "lineage").iterdir())
    assert [json.loads(claim.read_bytes())["number"] for claim in claims] == [1, 2, 3]


def test_a_zombie_chief(tmp_path: Path) -> None:
    """A chief stands still just before, or just after, it creates a manifest. Its worker is gone, another job takes
    over, saves and prunes; then it wakes up. It acknowledges nothing and deletes nothing."""
    with contextlib.ExitStack() as stack:
        jobs = {
            where: stack.enter_context(
                start_workers(
                    "tests.edge.programs:zombie", 2, env={"ROOT": str(tmp_path / where / "run"), "WHERE": where}
                )
            )
            for where in ("create", "created")
        }
        for where, (chief, other) in jobs.items():
            chief.wait_for_output("standing still", HANG_S)
            chief.send(signal.SIGSTOP)
            other.kill()
            root = tmp_path / where / "run"
            module = programs.make_state(tf.distribute.get_strategy())
            with CheckpointManager(root, {"m": module}, keep=KeepLast(1)) as manager:
                restored = manager.restore_latest()
                assert restored is not None
                assert restored.step == (1 if where == "create" else 2)
                assert float(module.large[-1]) == restored.step
                for step in (restored.step + 1, restored.step + 2):
                    programs.fill(module, step * 10)
                    manager.save(step)
            before = files_of(root)
            assert verify(root) == [restored.step + 2]

            (tmp_path / where / "go").touch()
            chief.send(signal.SIGCONT)
            assert chief.wait(HANG_S) == 7, chief.output()
            assert "fenced" in chief.output()
            assert before.items() <= files_of(root).items()  # nothing deleted, nothing touched
            assert verify(root) == [restored.step + 2]
            with CheckpointManager(root, {"m": module}, keep=KeepLast(1)) as manager:
                again = manager.restore_latest()
                assert again is not None
                assert (again.step, again.incarnation) == (restored.step + 2, 2)
                assert float(module.large[-1]) == again.step * 10
                manager.save(again.step + 1)
            assert folders(root) == [
                f"{again.step + 1:012}-i0003"
            ]  # the zombie's manifest, which never counted, is gone


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_clocks_that_go_back_and_forth_between_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which checkpoint counts is no clock's decision: each life resumes from the one before. KeepEvery(seconds=) goes
    by the clocks, and keeps one where they went back."""
    state, newest = Weights(), 0
    for hours in (5.0, -7.0, -6.0, 100.0, -1000.0):
        monkeypatch.setattr(ckptflow.commit.lineage, "datetime", programs.clock(hours))
        with CheckpointManager(tmp_path, state, keep=[KeepLast(1), KeepEvery(seconds=1800)]) as manager:
            restored = manager.restore_latest()
            assert (restored.step if restored else 0) == newest
            for step in (newest + 1, newest + 2):
                state.fill(step)
                manager.save(step)
        newest += 2
        state.fill(0)
    assert verify(tmp_path) == [1, 3, 5, 7, 9, 10]
    with CheckpointManager(tmp_path, state) as manager:
        manager.restore_latest()
    assert state.value() == newest
