"""Bad input gets a clear error, and nothing is lost."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import (
    CheckpointManager,
    FencedError,
    KeepLast,
    SaveFailedError,
    StateMismatchError,
    StepOrderError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnsupportedStateError,
    UsageError,
)
from ckptflow.testing import FaultyStore
from tests.manager.states import PlainState, Weights, committed, folders, wrap_store
from tests.processes import run_python
from tests.waiting import raised_in_a_thread


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A root with a checkpoint of step 5."""
    weights = Weights()
    weights.fill(5)
    with CheckpointManager(tmp_path / "run", {"w": weights}) as manager:
        manager.save(5)
    return tmp_path / "run"


def test_save_on_a_used_root_before_any_restore(used: Path) -> None:
    with CheckpointManager(used, {"w": Weights()}) as manager:
        with pytest.raises(UsageError, match=r"restore_latest\(\).*fresh=True"):
            manager.save(6)
        assert manager.restore_latest() is not None
        manager.save(6)
    assert [c.step for c in ckptflow.list_checkpoints(used)] == [5, 6]


def test_a_refused_restore_costs_no_claim(used: Path) -> None:
    """A wrong model on a live root must not fence the trainer."""
    with CheckpointManager(used, {"w": Weights(count=2)}) as manager:
        with pytest.raises(StateMismatchError):
            manager.restore_latest()
    assert len(list((used / "lineage").iterdir())) == 1


def test_all_differences_are_in_one_message(tmp_path: Path) -> None:
    def module(**variables: Any) -> tf.Module:
        made = tf.Module()
        for name, value in variables.items():
            setattr(made, name, tf.Variable(value))
        return made

    with CheckpointManager(tmp_path, {"m": module(a=[1.0], b=[1.0, 2.0], c=[1.0])}) as manager:
        manager.save(1)
    changed = module(a=[1], b=[1.0], d=[1.0])
    with CheckpointManager(tmp_path, {"m": changed}) as manager, pytest.raises(StateMismatchError) as caught:
        manager.restore_latest()
    for word in ("m/a", "float32", "int32", "m/b", "(2)", "(1)", "m/c", "m/d"):
        assert word in str(caught.value)
    assert float(changed.b[0]) == 1.0


def test_a_step_that_goes_back(used: Path) -> None:
    weights = Weights()
    with CheckpointManager(used, {"w": weights}) as manager:
        manager.restore_latest()
        with pytest.raises(StepOrderError, match="below step 5"):
            manager.save(4)
        manager.save(5).result()
        wrong: list[Any] = [
            -1,
            2**62,
            1.5,
            True,
            "7",
            b"7",
            [7],
            None,
            7.0,
            np.float64(7),
            np.bool_(True),
            np.array([7]),
        ]
        wrong += [tf.Variable(7.9), tf.constant(7.0), tf.constant(True), tf.Variable([7]), tf.constant("7")]
        for step in wrong:
            with pytest.raises(ValueError):
                manager.save(step)
        manager.save(np.int64(6)).result()
        manager.save(tf.constant(7)).result()
        manager.save(tf.Variable(8, dtype=tf.int64)).result()
        manager.save(np.array(9)).result()
    assert [(c.step, c.incarnation) for c in ckptflow.list_checkpoints(used)] == [(n, 2) for n in (5, 6, 7, 8, 9)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None, "0.5", b"1", 1j, np.complex64(1 + 2j)])
def test_metrics_that_are_no_finite_numbers(used: Path, value: Any) -> None:
    with CheckpointManager(used, {"w": Weights()}) as manager:
        manager.restore_latest()
        with pytest.raises(ValueError, match="'loss'"):
            manager.save(6, metrics={"loss": value})
        manager.save(6, metrics={"loss": np.float32(0.5)})
    assert ckptflow.list_checkpoints(used)[-1].metrics == {"loss": 0.5}


def test_metrics_that_are_no_map(used: Path) -> None:
    with CheckpointManager(used, {"w": Weights()}) as manager:
        manager.restore_latest()
        with pytest.raises(ValueError, match="metrics is a dict"):
            manager.save(6, metrics=[("loss", 1.0)])  # type: ignore[arg-type]


@pytest.mark.parametrize("rename", [[("w", "v")], {5: "w"}, {"w": None}, "w", lambda name: None], ids=range(5))
def test_a_rename_that_gives_no_names(used: Path, rename: Any) -> None:
    """A warm start would pass over what such a function makes of a name."""
    with CheckpointManager(used, {"w": Weights()}, read_only=True) as manager:
        with pytest.raises(UsageError, match="rename"):
            manager.restore_latest(partial=True, rename=rename)


def test_metadata_that_json_cannot_hold(used: Path) -> None:
    with CheckpointManager(used, {"w": Weights()}) as manager:
        manager.restore_latest()
        with pytest.raises(UnsupportedStateError, match="metadata"):
            manager.save(6, metadata={"f": open})


@pytest.mark.parametrize("large", ["x" * (65 << 20), [[]] * 400_000], ids=["long", "many"])
def test_what_no_manifest_has_room_for_is_refused_by_the_save_by_name(used: Path, large: Any) -> None:
    """Not by the commit, which is in the background and knows no names."""
    state = PlainState()
    with CheckpointManager(used, {"w": Weights(), "plain": state}) as manager:
        manager.restore_latest(partial=True)
        with pytest.raises(UnsupportedStateError, match=r"metadata takes .* bytes"):
            manager.save(6, metadata={"notes": large})
        state.seen = large
        with pytest.raises(UnsupportedStateError, match=r"plain takes .* bytes"):
            manager.save(6)
        state.seen = 1
        manager.save(7).result()
    assert [c.step for c in ckptflow.list_checkpoints(used)] == [5, 7]


def test_after_close_and_from_another_thread(used: Path) -> None:
    manager = CheckpointManager(used, {"w": Weights()})
    errors = raised_in_a_thread(manager.restore_latest, UsageError)
    assert "thread" in str(errors[0])
    manager.close()
    manager.close()
    for use in (manager.restore_latest, manager.latest, manager.wait, lambda: manager.save(9)):
        with pytest.raises(UsageError, match="closed"):
            use()


def test_a_fork_after_start(used: Path) -> None:
    """In a process of its own, since forking one that runs TensorFlow's threads is not safe by itself."""
    code = f"""
import os, sys, tensorflow as tf, ckptflow
manager = ckptflow.CheckpointManager({str(used)!r}, {{"v": tf.Variable(1.0)}}, fresh=True)
manager.save(1).wait()
pid = os.fork()
if pid == 0:
    try:
        manager.save(2)
    except ckptflow.UsageError as error:
        os._exit(0 if "fork" in str(error) else 3)
    os._exit(4)
child = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
manager.save(3).result()
manager.close()
sys.exit(child)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_read_only_beside_a_running_job(used: Path) -> None:
    weights, seen = Weights(), Weights()
    with (
        CheckpointManager(used, {"w": weights}) as trainer,
        CheckpointManager(used, {"w": seen}, read_only=True) as reader,
    ):
        trainer.restore_latest()
        for step in (6, 7):
            weights.fill(step)
            trainer.save(step).result()
            assert getattr(reader.restore_latest(), "step", None) == step
            assert seen.value() == step
        for write in (lambda: reader.save(8), lambda: reader.pin(7), lambda: reader.unpin(7)):
            with pytest.raises(UsageError, match="read_only"):
                write()
        trainer.save(8).result()
    assert len(list((used / "lineage").iterdir())) == 2


def test_two_jobs_on_one_root(used: Path) -> None:
    """The older one is told, loses no checkpoint and deletes none; the newer one goes on."""
    old = CheckpointManager(used, {"w": Weights()}, keep=KeepLast(1), on_save_error="log")
    old.restore_latest()
    new = CheckpointManager(used, {"w": Weights()}, keep=KeepLast(1))
    new.restore_latest()
    pending = old.save(6)
    with pytest.raises(FencedError) as caught:
        pending.result()
    for word in (str(used), "incarnation 3", str(os.getpid()), "read_only=True"):
        assert word in str(caught.value)
    for _ in range(2):  # on_save_error="log" does not hide it, and it does not wear off
        with pytest.raises(FencedError):
            old.save(7)
    with pytest.raises(FencedError):
        old.close()
    assert "000000000005-i0001" in committed(used)
    new.save(6).result()
    new.close()
    assert [(c.step, c.incarnation) for c in ckptflow.list_checkpoints(used)] == [(6, 3)]


def test_an_unknown_scheme_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="s3"):
        CheckpointManager("s4://bucket/run", {"v": tf.Variable(1.0)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"shard_bytes": 10},
        {"shard_bytes": 1e8},
        {"memory_budget_bytes": 1e9},
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": True},
        {"concurrency": 2.0},
        {"concurrency": float("nan")},
        {"concurrency": "4"},
        {"memory_budget_bytes": 10},
        {"commit_timeout_s": 0},
        {"peer_timeout_s": 0},
        {"peer_timeout_s": -1.0},
        {"peer_timeout_s": float("nan")},
        {"peer_timeout_s": "10"},
        {"peer_timeout_s": True},
        {"on_save_error": "ignore"},
        {"verify_replicas": "some"},
        {"restore_from": "peers"},
        {"keep": ["last"]},
        {"keep": True},
        {"keep": -1},
        {"keep": 2.5},
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        CheckpointManager(tmp_path / "run", {"v": tf.Variable(1.0)}, **wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["commit_timeout_s", "peer_timeout_s"])
def test_a_time_that_is_no_number(tmp_path: Path, name: str) -> None:
    for wrong in ("600", True, [600]):
        options: dict[str, Any] = {name: wrong}
        with pytest.raises(ValueError, match=f"{name} is a number of seconds above 0"):
            CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}, **options)


@pytest.mark.parametrize("state", [{}, {"x": 3}, {"x": [1, 2]}, {"": tf.Module()}, {3: tf.Module()}, {"f": print}])
def test_wrong_states(tmp_path: Path, state: Any) -> None:
    with pytest.raises((UnsupportedStateError, UsageError)):
        CheckpointManager(tmp_path, state)


def test_a_directory_that_vanishes(used: Path, tmp_path: Path) -> None:
    weights = Weights()
    manager = CheckpointManager(used, {"w": weights}, keep=KeepLast(3))
    manager.restore_latest()
    manager.save(6).result()
    manager.wait()  # for its prune as well
    shutil.rmtree(used)
    with pytest.raises((FencedError, StorageError, SaveFailedError)):
        manager.save(7).result()
    with pytest.raises((FencedError, StorageError, SaveFailedError)):
        manager.close()


def test_a_directory_that_nobody_may_write(used: Path, open_folder: Path) -> None:
    """As another user: root writes everywhere."""
    used = used.rename(open_folder / "run")
    code = f"""
import os, tensorflow as tf, ckptflow
manager = ckptflow.CheckpointManager({str(used)!r}, {{"v": tf.Variable(1.0)}}, fresh=True)
os.setgid(65534); os.setuid(65534)
try:
    manager.save(6).result()
except ckptflow.StorageAccessError as error:
    assert {str(used)!r} in str(error), error
    print("refused")
"""
    used.chmod(0o755)
    done = run_python("-c", code)
    assert "refused" in done.stdout, done.stderr
    assert len(committed(used)) == 1


def test_a_file_size_limit_in_the_middle_of_a_save(used: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: the save fails, says so, and the next one after it goes well."""
    code = f"""
import resource, tensorflow as tf, ckptflow
v = tf.Variable(tf.zeros([1_000_000]))
manager = ckptflow.CheckpointManager({str(used)!r}, {{"v": v}}, fresh=True)
manager.save(1).result()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
error = manager.save(2).exception()
assert isinstance(error, ckptflow.SaveFailedError), error
assert isinstance(error.__cause__, ckptflow.StorageFullError), error.__cause__
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    manager.save(3)
except ckptflow.SaveFailedError as error:
    assert "step" in str(error) or "-i" in str(error)
manager.save(3).result()
manager.close()
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert [c.step for c in ckptflow.list_checkpoints(used)] == [1, 3]
    assert "000000000002-i0002" not in folders(used)


def test_a_full_disk_sweeps_what_dead_lives_left(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"mount is refused here: {made.stderr.strip()}")
    try:
        weights = Weights(count=2, length=500_000)  # 4 MB
        weights.fill(1)
        (mount / "run" / "000000000001-i0001").mkdir(parents=True)
        (mount / "run" / "000000000001-i0001" / "shard-00000-of-00001-0000.safetensors").write_bytes(bytes(4_000_000))
        with CheckpointManager(mount / "run", {"w": weights}, on_save_error="log") as manager:
            assert manager.restore_latest() is None
            error = manager.save(2).exception()
            assert isinstance(error, SaveFailedError)
            assert isinstance(error.__cause__, StorageFullError)
            manager.save(3).result()
            manager.session._background.failure = None  # the first failure is known
        assert folders(mount / "run") == ["000000000003-i0002"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_storage_without_create_only_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Plain(FaultyStore):
        is_create_only = False

    with pytest.MonkeyPatch.context() as patch:
        wrap_store(patch, Plain)
        with caplog.at_level(logging.WARNING, "ckptflow"):
            with CheckpointManager(tmp_path, {"w": Weights()}) as manager:
                manager.save(1)
                manager.save(2)
    assert caplog.text.count("cannot create a file only where none is") == 1


def test_a_failed_save_is_raised_once_and_nothing_older_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    with CheckpointManager(tmp_path, {"w": Weights()}, keep=KeepLast(1)) as manager:
        manager.save(1).result()
        stores[0].fail("put", StorageUnavailableError("503 from the test"))
        pending = manager.save(2)
        assert isinstance(pending.exception(), SaveFailedError)
        assert not pending.is_unknown()
        assert committed(tmp_path) == ["000000000001-i0001"]
        with pytest.raises(SaveFailedError, match="503 from the test"):
            manager.save(3)
        manager.save(3).result()
    assert committed(tmp_path) == ["000000000003-i0001"]


def test_logged_failures_are_raised_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    manager = CheckpointManager(tmp_path, {"w": Weights()}, on_save_error="log")
    manager.save(1).result()
    stores[0].fail("put", StorageAccessError("403 from the test"))
    manager.save(2).wait()
    manager.save(3).result()
    with pytest.raises(SaveFailedError, match="403 from the test"):
        manager.close()
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1, 3]


def test_leaving_by_an_exception_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    with pytest.raises(KeyError, match="mine"), CheckpointManager(tmp_path, {"w": Weights()}) as manager:  # noqa: PT012
        manager.save(1).result()
        stores[0].fail("put", StorageUnavailableError("503"))
        manager.save(2)
        raise KeyError("mine")
    assert committed(tmp_path) == ["000000000001-i0001"]
