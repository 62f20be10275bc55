"""What a `CheckpointCallback` refuses: managers it cannot save with, and fits it cannot bring back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from ckptflow.errors import UsageError
from ckptflow.job.session import Session
from ckptflow.state.kinds import is_keras3_model
from ckptflow.state.strategies import worker_count


def check_manager(session: Session) -> None:
    """Raises `UsageError` if a fit can never save with this manager."""
    if session.read_only:
        raise UsageError("CheckpointCallback needs a manager that may write: this one has read_only=True")
    models = session.live.models()
    is_multi_worker = isinstance(session.cluster.strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if is_multi_worker and session.cluster.world_size > 1 and models and all(map(is_keras3_model, models)):
        raise UsageError(
            "Keras 3 cannot fit under MultiWorkerMirroredStrategy: it raises a ValueError about PerReplica "
            "before it calls any callback. Use tf_keras, or a training loop of your own with manager.save(step)"
        )


def check_model(model: Any) -> None:
    """Raises `UsageError` for a model whose `fit` no manager can follow."""
    if isinstance(model.distribute_strategy, tf.distribute.ParameterServerStrategy):
        raise UsageError(
            "fit under ParameterServerStrategy does its steps in its own time; call manager.save(step) in a "
            "training loop of your own, after coordinator.join()"
        )
    if model.optimizer is None:
        raise UsageError("the model has no optimizer: compile it with one before fit")


def check_others(others: Sequence[Any], ours: type) -> None:
    """Raises `UsageError` if another callback of the fit brings it back as well."""
    if any(isinstance(item, ours) for item in others):
        raise UsageError("a fit goes on from one checkpoint: give it one CheckpointCallback")
    if any(cls.__name__ == "BackupAndRestore" for item in others for cls in type(item).__mro__):
        raise UsageError("BackupAndRestore and CheckpointCallback both bring fit back: take one of them out")


def check_state(model: Any, session: Session) -> None:
    """Raises `UsageError` if the manager does not save what is fitted."""
    if worker_count(model.distribute_strategy) != session.cluster.world_size:
        raise UsageError("the manager was not made under the strategy of the model: pass strategy= to it")
    if not session.live.has_optimizer(model.optimizer):
        raise UsageError(
            "the manager's state does not hold the optimizer of the model that is fitted: make the manager with "
            '{"model": model}, and the callback with that manager'
        )
