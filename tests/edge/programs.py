"""What the worker processes of these tests run: each function is one program, the same on every worker."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
import ckptflow.commit.lineage
import ckptflow.job.session
from ckptflow import CheckpointManager, KeepEvery, KeepLast, PeerError, UsageError
from ckptflow.events import Tell, tell_nobody
from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.peers.cluster import Cluster
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper
from tests.waiting import HANG_S

T = TypeVar("T")
ROOT = Path(os.environ.get("ROOT", "."))
LENGTH = 300_000  # 1.2 MiB: divided between the workers
SHARD_BYTES = 2**18
LATE_S = 0.3


def join() -> tuple[Any, int]:
    """The strategy and this worker's number."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    return strategy, int(strategy.cluster_resolver.task_id)


def make_state(strategy: Any) -> tf.Module:
    with strategy.scope():
        module = tf.Module()
        module.large = tf.Variable(tf.zeros([LENGTH]))
        module.small = tf.Variable(tf.zeros([3]))
    return module


def fill(module: tf.Module, value: float) -> None:
    for variable in module.variables:
        variable.assign(tf.fill(variable.shape, float(value)))


def assert_filled(module: tf.Module, value: float) -> None:
    for variable in module.variables:
        np.testing.assert_array_equal(variable.values[0].numpy(), np.full(variable.shape, value, np.float32))


def make_manager(strategy: Any, module: tf.Module, **options: Any) -> CheckpointManager:
    return CheckpointManager(ROOT, {"m": module}, strategy=strategy, shard_bytes=SHARD_BYTES, **options)


class Hooked(StoreWrapper):
    """Calls a hook before every request, and with "created" after a create."""

    def __init__(self, store: Store, hook: Callable[[str, str], None]) -> None:
        super().__init__(store)
        self._hook = hook

    def run(self, verb: str, key: str, call: Callable[[], T]) -> T:
        self._hook(verb, key)
        result = call()
        if verb == "create":
            self._hook("created", key)
        return result


def hook_stores(hook: Callable[[str, str], None]) -> None:
    """Every manager made from here on in this process works on a hooked store."""

    def open_hooked(url: str, options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
        return Hooked(open_store(url, options, tell), hook)

    ckptflow.job.session.open_store = open_hooked  # type: ignore[attr-defined, assignment]


def clock(hours: float) -> type[datetime]:
    """A `datetime` whose `now` is wrong by so much."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(hours=hours)

    return Shifted


def shift_clock(hours: float) -> None:
    """From here on this process's clock, but for the monotonic one, is wrong by so much."""
    real_time = time.time
    time.time = lambda: real_time() + hours * 3600
    ckptflow.commit.lineage.datetime = clock(hours)  # type: ignore[attr-defined]


# Together: several things that need two workers and nothing that ends them, in one process start


def together() -> None:
    strategy, worker = join()
    threads: list[threading.Thread] = []
    real = Cluster.exchange

    def exchange(self: Cluster, message: bytes, call: str) -> list[bytes]:
        threads.append(threading.current_thread())
        return real(self, message, call)

    Cluster.exchange = exchange  # type: ignore[method-assign]
    module = make_state(strategy)
    _late_at_each_call(strategy, worker, module)
    assert len(threads) > 20
    assert set(threads) == {threading.main_thread()}
    _several_managers(strategy, module)
    _different_states(strategy, worker, module)
    _wrong_strategy(module)
    _one_manager_alone(strategy, worker, module)
    print("well", flush=True)
    with contextlib.suppress(tf.errors.UnavailableError):  # worker 0, through which they meet, may be gone first
        _meet_without_ckptflow(worker)
    os._exit(0)


def a_result_whose_chief_is_gone() -> None:
    """Worker 0 stands still just before it commits, worker 1 waits for that in `result`, and is not kept waiting."""
    strategy, worker = join()

    def stop(verb: str, key: str) -> None:
        if worker == 0 and verb == "create" and key.endswith(MANIFEST_NAME):
            os.kill(os.getpid(), signal.SIGSTOP)  # reaches this thread a moment later: it must not commit in that
            threading.Event().wait()

    hook_stores(stop)
    manager = make_manager(strategy, make_state(strategy), peer_timeout_s=60.0)
    manager.restore_latest()
    pending = manager.save(1)
    with pytest.raises(
        PeerError, match=r"worker 0 does not answer \(127.*\), which commits: .* has no manifest so far"
    ):
        pending.result()
    with pytest.raises(PeerError, match=r"worker 0 .* does not answer"):
        manager.close()
    print("well", flush=True)
    os._exit(0)


def _late_at_each_call(strategy: Any, worker: int, module: tf.Module) -> None:
    """Whoever is late, wherever: the others wait, and everything ends well. Each call comes once with each worker late,
    in two lives of a manager, and worker 1's storage is slow throughout."""

    def slow(verb: str, key: str) -> None:
        if worker == 1 and verb == "put":
            time.sleep(0.2)

    hook_stores(slow)
    for life in range(2):
        calls = itertools.count(life)

        def late(calls: Iterator[int] = calls) -> None:
            if next(calls) % 2 == worker:
                time.sleep(LATE_S)

        late()
        manager = make_manager(strategy, module, keep=KeepLast(3))
        late()
        restored = manager.restore_latest()
        assert (restored.step if restored else 0) == 3 * life
        fill(module, 3 * life + 1)
        late()
        manager.save(3 * life + 1)
        late()
        manager.pin(3 * life + 1)
        late()
        manager.wait()
        fill(module, 3 * life + 2)
        late()
        manager.save(3 * life + 2)
        late()
        assert manager.rollback(3 * life + 1).step == 3 * life + 1
        assert_filled(module, 3 * life + 1)
        late()
        assert manager.restore(3 * life + 1).step == 3 * life + 1
        late()
        manager.save(3 * life + 3)
        late()
        manager.close()
    hook_stores(lambda verb, key: None)


def _several_managers(strategy: Any, module: tf.Module) -> None:
    """One after another, and two at once on two roots, in turns."""
    other = CheckpointManager(ROOT.with_name("other"), {"m": module}, strategy=strategy)
    with make_manager(strategy, module) as manager, other:
        newest = manager.restore_latest()
        assert newest is not None
        assert other.restore_latest() is None
        for step in (newest.step + 1, newest.step + 2):
            manager.save(step)
            other.save(step)
    with make_manager(strategy, module, read_only=True) as reader:
        restored = reader.restore_latest()
        assert restored is not None
        assert restored.step == newest.step + 2


def _different_states(strategy: Any, worker: int, module: tf.Module) -> None:
    """Named on all workers, at once; nothing is saved, nothing restored, and the managers work on."""
    odd: dict[str, Any] = {"m": module, "w": tf.Variable(tf.zeros([3 + worker]))}
    if worker == 1:
        odd["extra"] = tf.Variable(1, dtype=tf.int64)
    expected = (
        r"different states.*Worker 0 has w: float32 \(3,\)[^()]* \(not on worker 1\)\. "
        r"Worker 1 has extra: int64 \(\)[^()]* \(not on worker 0\); w: float32 \(4,\)[^()]* \(not on worker 0\)\."
    )
    with CheckpointManager(ROOT.with_name("odd"), odd, strategy=strategy) as manager:
        for call in (lambda: manager.restore_latest(), lambda: manager.save(1), lambda: manager.save(1)):
            with pytest.raises(UsageError, match=expected):
                call()
        assert manager.checkpoints() == []
        manager.wait()
    grown = tf.Module()
    grown.variables_ = [tf.Variable(1.0)]
    with CheckpointManager(ROOT.with_name("odd"), {"grown": grown}, strategy=strategy) as manager:
        manager.save(1)
        grown.variables_ = [*grown.variables_, *([tf.Variable(2.0)] if worker else [])]
        with pytest.raises(UsageError, match="Worker 1 has grown/variables_/1"):
            manager.save(2)
        grown.variables_ = grown.variables_[:1]
        manager.save(3)
    assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(ROOT.with_name("odd"))] == [1, 3]


def _wrong_strategy(module: tf.Module) -> None:
    with pytest.raises(
        UsageError, match=r"m/large was made under a MultiWorkerMirroredStrategy of 2 workers.* under none"
    ):
        CheckpointManager(ROOT, {"m": module})
    with pytest.raises(UsageError, match=r"m/large .* under a OneDeviceStrategy: pass the strategy"):
        CheckpointManager(ROOT, {"m": module}, strategy=tf.distribute.OneDeviceStrategy("CPU:0"))


def _one_manager_alone(strategy: Any, worker: int, module: tf.Module) -> None:
    """Who is missing is named after the deadline; who comes after it is told so; and all can go on without saving."""
    for alone in (0, 1):
        missing = 1 - alone
        if worker != alone:
            _meet_without_ckptflow(worker)  # when the other one has given up
        manager = make_manager(strategy, module, commit_timeout_s=4.0)
        with pytest.raises(PeerError, match=rf"worker {missing} \(127\.0\.0\.1:\d+\) of 2 has not reached restore"):
            manager.restore_latest()
        assert manager.latest() is not None
        if worker == alone:
            _meet_without_ckptflow(worker)
        _meet_without_ckptflow(worker)
    assert strategy.reduce("SUM", tf.constant([1]), axis=None).numpy().tolist() == [2]  # nothing is poisoned


_meetings = iter(range(100))


def _meet_without_ckptflow(worker: int) -> None:
    """Returns when both workers are here."""
    from tensorflow.python.eager import context

    meeting = next(_meetings)
    context.context().set_config_key_value(f"test/{meeting}/{worker}", "here")
    context.context().get_config_key_value(f"test/{meeting}/{1 - worker}", int(HANG_S * 1000))


# Lives that end in the middle


def dies_between_shards_and_receipt() -> None:
    """Three workers; the last one has written its shards of step 2 and is killed before its receipt. Clocks differ."""
    strategy, worker = join()
    shift_clock((5.0, -7.0, 30.0)[worker])
    module = make_state(strategy)

    def hook(verb: str, key: str) -> None:
        if worker == 2 and verb == "put" and "000000000002" in key and "receipt" in key:
            os.kill(os.getpid(), signal.SIGKILL)

    hook_stores(hook)
    manager = make_manager(strategy, module)
    assert manager.restore_latest() is None
    fill(module, 1.0)
    manager.save(1)
    fill(module, 2.0)
    manager.save(2)
    with pytest.raises((PeerError, ckptflow.SaveFailedError)):
        manager.wait()
    print("told", flush=True)
    os._exit(3)


def dies_in_the_restore() -> None:
    """Two workers; worker 1 is killed while it reads its first shard."""
    strategy, worker = join()
    shift_clock((-30.0, 2.0)[worker])
    module = make_state(strategy)

    def hook(verb: str, key: str) -> None:
        if worker == 1 and verb == "get" and "shard" in key:
            os.kill(os.getpid(), signal.SIGKILL)

    hook_stores(hook)
    with pytest.raises(PeerError, match=r"^worker 0 of 2"):
        make_manager(strategy, module).restore_latest()
    print("told", flush=True)
    os._exit(3)


def resumes_with_a_late_worker() -> None:
    """Two workers, one of which starts seconds after the other, and is late once more before its first exchange."""
    time.sleep(1.0 * json.loads(os.environ["TF_CONFIG"])["task"]["index"])
    strategy, worker = join()
    shift_clock((11.0, -11.0)[worker])
    module = make_state(strategy)
    time.sleep(0.5 * worker)
    keep = [KeepLast(1), KeepEvery(seconds=3600)]
    with make_manager(strategy, module, keep=keep) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert restored.step == 1
        assert_filled(module, 1.0)
        for step in (2, 3, 4):
            fill(module, float(step))
            manager.save(step)
    print("well", flush=True)


# A zombie


def zombie() -> None:
    """Two workers; the chief says when it is about to create the manifest of step 2, or has created it, and waits."""
    strategy, worker = join()
    module = make_state(strategy)
    where = os.environ["WHERE"]

    def hook(verb: str, key: str) -> None:
        if worker == 0 and verb == where and key.startswith("000000000002") and key.endswith("manifest.json"):
            print("standing still", flush=True)
            while not ROOT.with_name("go").exists():
                time.sleep(0.05)

    hook_stores(hook)
    manager = make_manager(strategy, module, keep=KeepLast(1))
    assert manager.restore_latest() is None
    for step in (1, 2):
        fill(module, float(step))
        pending = manager.save(step)
    try:
        manager.wait()
    except ckptflow.FencedError:
        assert isinstance(pending.exception(), ckptflow.FencedError)
        print("fenced", flush=True)
        os._exit(7)
    os._exit(0)
