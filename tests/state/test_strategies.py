"""Who saves under which strategy, and whose a variable is: what one process can tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager
from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.peers.cluster import Cluster, find_cluster
from ckptflow.state.strategies import check_strategy, unused_workers
from ckptflow.state.tree import as_mapping, walk

ON_READ = tf.VariableSynchronization.ON_READ
MEAN = tf.VariableAggregation.MEAN


def of_type(kind: type, **attributes: Any) -> Any:
    """An object that is a `kind` without what only a cluster can give it."""
    strategy: Any = object.__new__(kind)
    for name, value in attributes.items():
        setattr(strategy, name, value)
    return strategy


def resolver(task_type: str | None) -> Any:
    spec = tf.train.ClusterSpec({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]})
    return tf.distribute.cluster_resolver.SimpleClusterResolver(spec, task_type=task_type, task_id=0)


@pytest.mark.parametrize(
    "strategy",
    [
        tf.distribute.get_strategy(),
        tf.distribute.OneDeviceStrategy("CPU:0"),
        tf.distribute.MirroredStrategy(["CPU:0"]),
        tf.distribute.MultiWorkerMirroredStrategy(),  # without TF_CONFIG
        of_type(tf.distribute.ParameterServerStrategy, _cluster_resolver=resolver("chief")),
        of_type(tf.distribute.ParameterServerStrategy, _cluster_resolver=resolver(None)),
        of_type(tf.distribute.TPUStrategy),
        of_type(tf.distribute.experimental.TPUStrategy),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_one_process_that_saves_alone(strategy: Any) -> None:
    cluster = find_cluster(strategy)
    assert cluster == Cluster(0, 1, strategy)
    assert cluster.exchange(b"7", "a test") == [b"7"]


def test_the_scope_that_is_open_counts() -> None:
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    with one.scope():
        assert find_cluster().strategy is one


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.distribute.experimental.CentralStorageStrategy(["CPU:0"]),
        lambda: tf.compat.v1.distribute.experimental.ParameterServerStrategy(),
        lambda: tf.compat.v1.distribute.MirroredStrategy(["CPU:0"]),
    ],
    ids=["CentralStorageStrategy", "ParameterServerStrategyV1", "MirroredStrategyV1"],
)
def test_what_is_not_known_is_refused_by_name(make: Callable[[], Any], request: pytest.FixtureRequest) -> None:
    with pytest.raises(UnsupportedStateError, match=request.node.callspec.id):
        find_cluster(make())


@pytest.mark.parametrize("kind", ["worker", "ps"])
def test_tasks_beside_parameter_servers_save_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedStateError, match=rf"'{kind}' task .*Server\(...\).join"):
        find_cluster(of_type(tf.distribute.ParameterServerStrategy, _cluster_resolver=resolver(kind)))
    cluster = {"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}}))
    with pytest.raises(UnsupportedStateError, match="only the coordinator"):
        find_cluster()
    for reader in ("chief", "evaluator"):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": reader, "index": 0}}))
        assert find_cluster().world_size == 1
    monkeypatch.setenv("TF_CONFIG", "not JSON")
    assert find_cluster().world_size == 1


TWO = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"cluster": TWO, "task": {"type": "worker", "index": 1}}, "TF_CONFIG names 2 workers"),
        ({"cluster": {"chief": ["c:1"], "worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}, "names 2 workers"),
        ({"cluster": TWO}, "TF_CONFIG names 2 workers"),
        ("{'cluster': ", "TF_CONFIG is not the JSON"),
        (["worker"], "TF_CONFIG is not the JSON"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, None),
        ({"cluster": TWO | {"evaluator": ["e:1"]}, "task": {"type": "evaluator", "index": 0}}, None),
        ({"cluster": TWO | {"ps": ["p:1"]}, "task": {"type": "chief", "index": 0}}, None),
        ({"task": {"type": "worker", "index": 0}}, None),
        ({}, None),
        ("", None),
    ],
)
def test_workers_that_no_strategy_brings_together(
    config: Any, said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirrored = tf.distribute.MirroredStrategy(["CPU:0"])  # before: TensorFlow reads it as well
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    for strategy in (None, mirrored):
        caplog.clear()
        CheckpointManager(tmp_path, {"step": tf.Variable(1)}, strategy=strategy, read_only=True).close()
        assert caplog.text == ""
        CheckpointManager(tmp_path, {"step": tf.Variable(1)}, strategy=strategy).close()
        assert caplog.text.count("each worker would act alone") == (said is not None)
        assert (said or "") in caplog.text
    for kind in (tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.ParameterServerStrategy):
        assert unused_workers(of_type(kind)) is None


def test_dtensor_clients_must_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTENSOR_JOBS", "a:1,b:1")
    monkeypatch.setenv("DTENSOR_CLIENT_ID", "1")
    with pytest.raises(UsageError, match=r"2 clients.*initialize_accelerator_system"):
        find_cluster()
    assert find_cluster(tf.distribute.OneDeviceStrategy("CPU:0")).world_size == 1


# Whose a variable is


def states(strategy: Any) -> dict[str, Any]:
    """What is kept in a distributed variable, plain and under every wrapper."""
    with strategy.scope():
        policy = tf_keras.mixed_precision.Policy("mixed_float16")
        cast = tf_keras.layers.Dense(2, dtype=policy)
        cast.build((None, 3))
        model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
        return {
            "mirrored": tf.Variable([1.0]),
            "on_read": tf.Variable([1.0], synchronization=ON_READ, aggregation=MEAN, trainable=False),
            "cast": cast,
            "model": model,
        }


@pytest.mark.parametrize("entry", ["mirrored", "on_read", "cast", "model"])
def test_a_variable_of_another_strategy_is_named(entry: str) -> None:
    mine = tf.distribute.MirroredStrategy(["CPU:0"])
    variables = walk(as_mapping({entry: states(mine)[entry]})).variables
    check_strategy(variables, mine)
    check_strategy(variables, None)  # one worker: as good as plain variables
    check_strategy(variables, tf.distribute.get_strategy())
    with pytest.raises(UsageError, match=rf"^{entry}.* made under a MirroredStrategy.* under a OneDeviceStrategy"):
        check_strategy(variables, tf.distribute.OneDeviceStrategy("CPU:0"))
    with pytest.raises(UsageError, match=r"MirroredStrategy \(another object\)"):
        check_strategy(variables, tf.distribute.MirroredStrategy(["CPU:0"]))


def test_plain_variables_belong_to_nobody() -> None:
    variables = walk(as_mapping({"v": tf.Variable(np.zeros(3))})).variables
    check_strategy(variables, tf.distribute.MirroredStrategy(["CPU:0"]))
