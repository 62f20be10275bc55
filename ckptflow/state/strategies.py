"""What ckptflow knows of each `tf.distribute` strategy: which processes save, and which variables are whose."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from ckptflow.errors import PeerError, UnsupportedStateError, UsageError
from ckptflow.state.kinds import is_distributed, is_on_server, raw_variable
from ckptflow.state.private import tensorflow as private

# Under all of these but the second one Python runs in one process, which sees all of the state: also for the hosts of
# a TPU pod, and for parameter servers, whose coordinator pulls what it saves.
KNOWN = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
    tf.distribute.ParameterServerStrategy,
    tf.distribute.TPUStrategy,
    tf.distribute.experimental.TPUStrategy,
)

_OF_SEVERAL = tuple(set(KNOWN) - {tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy})


def is_default(strategy: Any) -> bool:
    """Whether it stands for no strategy at all."""
    return strategy is None or type(strategy).__name__ == private.DEFAULT_STRATEGY


def name_of(strategy: Any) -> str:
    """The name by which users know its class."""
    return private.public_name(type(strategy))


def check_known(strategy: Any) -> None:
    """Raises `UnsupportedStateError` for a strategy that is not known, and in a process that must not save."""
    if not is_default(strategy) and not isinstance(strategy, KNOWN):
        raise UnsupportedStateError(
            f"{name_of(strategy)} is not supported by this version of ckptflow; it knows no strategy, "
            "OneDeviceStrategy, MirroredStrategy, MultiWorkerMirroredStrategy, ParameterServerStrategy (of TensorFlow "
            "2, with a ClusterCoordinator), TPUStrategy, and DTensor"
        )
    kind = ""
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        kind = private.cluster_resolver_of(strategy).task_type or ""
    elif is_default(strategy):
        kind = _served_task()
    if kind in ("worker", "ps"):
        raise UnsupportedStateError(
            f"this process is a {kind!r} task of a cluster with parameter servers and has no state to save: only the "
            "coordinator creates a CheckpointManager; here, run tf.distribute.Server(...).join() and nothing else"
        )


def _served_task() -> str:
    """This process's task type, where TF_CONFIG names parameter servers."""
    with contextlib.suppress(ValueError, AttributeError):  # TensorFlow complains where it matters
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        if config.get("cluster", {}).get("ps"):
            return str(config.get("task", {}).get("type"))
    return ""


def unused_workers(strategy: Any) -> str | None:
    """What is wrong if TF_CONFIG names workers of which each would act alone, and what to do; or None.

    A coordinator of parameter servers, an evaluator and a pod of TPUs are one process that saves, whatever it names.
    """
    config = os.environ.get("TF_CONFIG")
    if not config or isinstance(strategy, _OF_SEVERAL):
        return None
    try:
        cluster, task = (dict(json.loads(config).get(name) or {}) for name in ("cluster", "task"))
        count = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
        problem = f"TF_CONFIG names {count} workers"
    except (ValueError, TypeError, AttributeError, RecursionError):
        count, cluster, task, problem = 2, {}, {}, "TF_CONFIG is not the JSON that TensorFlow expects"
    if count < 2 or cluster.get("ps") or task.get("type") == "evaluator":
        return None
    return (
        f"{problem}, and no strategy of several workers is in use: each worker would act alone, and the one that "
        "starts last ends the others by FencedError. Make the state and the manager under "
        "tf.distribute.MultiWorkerMirroredStrategy, or unset TF_CONFIG if this process trains by itself"
    )


def join_scheduled(strategy: Any) -> None:
    """Waits for all steps that a ClusterCoordinator has been given: between them no state is of one step.

    Raises what such a step raised, as the coordinator's own `join` does.
    """
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        coordinator = private.coordinator_of(strategy)
        if coordinator is not None:
            coordinator.join()


def tasks_of(strategy: Any) -> dict[str, Sequence[str]]:
    """The addresses of the processes that train together under a strategy, chief first; {} where it is one."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return {}
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver is not None else {}
    return {kind: spec[kind] for kind in ("chief", "worker") if spec.get(kind)}


def worker_count(strategy: Any) -> int:
    """How many workers train together under a strategy."""
    return sum(map(len, tasks_of(strategy).values())) or 1


def worker_index(strategy: Any) -> int:
    """This worker's place under a strategy: the chief first, then the workers."""
    tasks = tasks_of(strategy)
    if not tasks:
        return 0
    resolver = strategy.cluster_resolver
    if resolver.task_type not in tasks:
        raise UnsupportedStateError(
            f"a task of type {resolver.task_type!r} takes no part in training and saves nothing"
        )
    before = len(tasks.get("chief", ())) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id)


def is_between_steps() -> bool:
    """Whether this code runs where a training loop does: not inside a tf.function, nor inside strategy.run."""
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    return bool(tf.executing_eagerly()) and not in_replica


def server_is_gone(error: Any, what: str) -> PeerError:
    """What TensorFlow's UnavailableError means for variables that are on parameter servers."""
    found = re.search(r"/job:ps/replica:\d+/task:\d+", str(error.message))
    return PeerError(
        f"{what}: {found[0] if found else 'a parameter server'} that holds variables has ended or cannot be reached. "
        "What was saved before is untouched; start all processes again, and restore"
    )


def check_strategy(variables: Mapping[str, Any], strategy: Any) -> None:
    """Raises `UsageError`, by name, for a variable that belongs to another strategy than the manager's.

    Without a strategy, variables of one that has a single worker are as good as plain ones. Starts no collective.
    """
    for name, variable in variables.items():
        raw = raw_variable(variable)
        if is_on_server(variable) and not isinstance(strategy, tf.distribute.ParameterServerStrategy):
            other = "none" if is_default(strategy) else f"a {name_of(strategy)}"
            raise UsageError(
                f"{name} is on parameter servers, and the manager under {other}: pass strategy=, the "
                "ParameterServerStrategy under which the state was made"
            )
        if not is_distributed(raw):
            continue
        owner = raw.distribute_strategy  # a property of every DistributedVariable, so that nothing is read
        if is_default(strategy):
            count = worker_count(owner)
            if count > 1:
                raise UsageError(
                    f"{name} was made under a {name_of(owner)} of {count} workers, and the manager under none: "
                    "each worker would act alone. Pass strategy=, or create the manager inside its "
                    "scope()"
                )
        elif owner is not strategy:
            other = " (another object)" if type(owner) is type(strategy) else ""
            raise UsageError(
                f"{name} was made under a {name_of(owner)}, and the manager under a {name_of(strategy)}{other}: "
                "pass the strategy under which the state was made"
            )
