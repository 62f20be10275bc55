"""Real kills: a fit whose process is gone, begun again in a new one, ends bit for bit like one that was left alone."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports
from tests.processes import run_workers


def seeded() -> random.Random:
    """A new seed each time, printed, and taken from CKPTFLOW_CHAOS_SEED where that is set."""
    seed = int(os.environ.get("CKPTFLOW_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CKPTFLOW_CHAOS_SEED={seed}")
    return random.Random(seed)


def check(found: dict[str, Any], expected: dict[str, Any], *, has_replicas: bool) -> None:
    for name in ("seen", "values", "epochs"):
        assert found[name] == expected[name], name
    assert len(found["hooks"]) < len(expected["hooks"]), "it began at the beginning: nothing was tried"
    if has_replicas:  # a resume adds up the replicas' metrics in another order
        for name, values in expected["history"].items():
            assert found["history"][name] == pytest.approx(values, rel=1e-5)
    else:
        assert (found["history"], found["others"]) == (expected["history"], expected["others"])


def test_a_killed_fit_of_one_process(tmp_path: Path) -> None:
    env = {"ROOT": str(tmp_path), "SEED": str(seeded().randrange(10**6)), "TF_CONFIG": "{}"}
    run_workers("tests.callbacks.single:main", 1, env=env)
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    jobs = [name for name in results if f"{name}-reference" in results]
    assert len(jobs) == 3
    for job in jobs:
        check(results[job], results[f"{job}-reference"], has_replicas=job == "mirrored")
    stopped = results["stopped-reference"]
    assert len(stopped["epochs"]) < 9, "it was not stopped: nothing was tried"
    assert stopped["others"][1]["stopped_epoch"] > 0


def test_a_killed_fit_of_two_workers(tmp_path: Path) -> None:
    """After the second save, which waits for the first: then both workers have seen a commit, or neither has."""
    ports = ",".join(map(str, free_ports(4)[2:]))
    env = {"ROOT": str(tmp_path), "KILL_AFTER": str(seeded().randint(7, 24)), "PORTS": ports}
    run_workers("tests.callbacks.workers:main", 2, env=env)
    for index in range(2):
        found, expected = json.loads((tmp_path / f"{index}.json").read_text())
        check(found, expected, has_replicas=True)


def test_keras3_under_workers_is_refused_before_fit_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own error comes before any callback is called; ours, when the callback is made."""
    import keras
    import tensorflow as tf

    import ckptflow
    from ckptflow.peers.cluster import Cluster

    class Workers(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    with ckptflow.CheckpointManager(tmp_path, {"model": model}) as manager:
        monkeypatch.setattr(manager.session, "cluster", Cluster(0, 2, Workers()))
        with pytest.raises(ckptflow.UsageError, match="Keras 3 cannot fit under MultiWorkerMirroredStrategy"):
            ckptflow.CheckpointCallback(manager, every_steps=1)
        monkeypatch.undo()
