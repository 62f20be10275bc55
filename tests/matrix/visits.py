"""Visits of roots, one after the other, as the environment says.

A visit restores the newest checkpoint of a root into the state of one setting, trains, and saves. What the process
then holds goes to files, and is compared elsewhere: nothing here decides whether it is right.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from ckptflow import CheckpointManager, KeepLast
from tests.matrix.homes import Home, Mesh, Replicated, Servers, Tpu
from tests.matrix.settings import FIRST_STEP
from tests.matrix.trainee import Module, Net, Trainee

WORKER = int(os.environ["MATRIX_WORKER"])


def make_all() -> None:
    """Reads the visits from MATRIX_VISITS and makes them, one after the other."""
    group = os.environ["MATRIX_GROUP"].split("-")[0]
    homes = {"local": _local, "mesh": _mesh, "workers": _workers, "servers": _servers, "clients": _clients}[group]()
    for visit in json.loads(os.environ["MATRIX_VISITS"]):
        _visit(homes(visit["setting"]), **visit)
        print("visited", visit["setting"], visit["root"], flush=True)


def _visit(home: Home, setting: str, what: str, root: str, dumps: str, seed: int) -> None:
    trainee: Trainee = {"module": Module, "net": Net}[what](home, seed)
    with CheckpointManager(root, trainee.state, strategy=home.strategy, keep=[KeepLast(100)]) as manager:
        restored = manager.restore_latest()
        if restored is not None:
            _dump(trainee, Path(dumps) / "restored")
        trainee.train(FIRST_STEP if restored is None else 1)
        manager.save(trainee.step)
        manager.wait()
    _dump(trainee, Path(dumps) / "saved")


def _dump(trainee: Trainee, folder: Path) -> None:
    """Writes what is held as one file of bit patterns: "name|start|number" for each piece."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = {
        f"{name}|{','.join(map(str, start))}|{number}": bits(array)
        for name, found in trainee.held()
        for number, (start, array) in enumerate(found)
    }
    np.savez(folder / f"{WORKER}.npz", **pieces)


def bits(array: Any) -> Any:
    """The array as unsigned numbers of the same size: NaNs and signed zeros are told apart, and NumPy can write it."""
    return np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.dtype.itemsize}")


def _local() -> Any:
    @functools.cache
    def home(setting: str) -> Home:
        match setting:
            case "one-device":
                return Replicated(tf.distribute.OneDeviceStrategy("CPU:1"))
            case "mirrored":
                return Replicated(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
            case "tpu" | "tpu-spmd":
                return Tpu(spmd=setting == "tpu-spmd")
        return Replicated(tf.distribute.get_strategy())

    return home


def _mesh() -> Any:
    dtensor.initialize_accelerator_system("CPU")

    @functools.cache
    def mesh(*dimensions: tuple[str, int]) -> Any:
        return dtensor.create_mesh(list(dimensions), device_type="CPU")

    def home(setting: str) -> Home:
        match setting:
            case "mesh-4x1":
                return Mesh(mesh(("x", 4), ("y", 1)))
            case "mesh-1d":
                return Mesh(mesh(("all", 4)))
        return Mesh(mesh(("x", 2), ("y", 2)), is_divided=setting != "mesh-replicated")

    return home


def _workers() -> Any:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    return lambda setting: Replicated(strategy)


def _clients() -> Any:
    dtensor.initialize_accelerator_system("CPU")
    mesh = dtensor.create_distributed_mesh([("x", 2), ("y", 2)], device_type="CPU")
    return lambda setting: Mesh(mesh)


def _servers() -> Any:
    partitioners = tf.distribute.experimental.partitioners
    by_setting = {
        "servers-2": partitioners.FixedShardsPartitioner(2),
        "servers-3": partitioners.FixedShardsPartitioner(3),
        "servers-min": partitioners.MinSizePartitioner(min_shard_bytes=64, max_shards=5),
        "servers-max": partitioners.MaxSizePartitioner(max_shard_bytes=300_000),
    }
    now = ""

    def partition(*args: Any, **kwargs: Any) -> Any:
        return by_setting[now](*args, **kwargs)

    strategy = tf.distribute.ParameterServerStrategy(
        tf.distribute.cluster_resolver.TFConfigClusterResolver(), variable_partitioner=partition
    )
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    def home(setting: str) -> Home:
        nonlocal now
        now = setting
        return Servers(strategy, coordinator)

    return home
