"""A fit that could not begin, since a callback of one's own raised: the next one begins where it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptflow import CheckpointCallback, CheckpointManager
from tests.callbacks.jobs import BATCHES, keras_of
from tests.callbacks.test_fit import Interrupt, Job, interrupt_at


def test_the_next_fit_goes_on_all_the_same(tmp_path: Path) -> None:
    keras = keras_of(False)

    class Fussy(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        refusals = 0

        def get_state(self) -> Any:
            return {}

        def set_state(self, state: Any) -> None:
            if self.refusals:
                self.refusals -= 1
                raise ValueError("not this time")

    with pytest.raises(Interrupt), Job(keras, tmp_path) as job:
        job.fit(epochs=2, every={"every_steps": 1}, callbacks=[Fussy(), interrupt_at(keras, 5)])
    with Job(keras, tmp_path) as job:
        fussy = Fussy()
        fussy.refusals = 1
        with pytest.raises(ValueError, match="not this time"):
            job.fit(epochs=2, callbacks=[fussy])
        job.fit(epochs=2, callbacks=[fussy])
        assert job.batches == [0, 2 * BATCHES - 5]  # the sixth step of the life before was not saved
        assert job.steps()[-1] == 2 * BATCHES


@pytest.mark.parametrize("make", ["legacy, scaled", "not built", "averaged, not built"])
def test_a_model_that_is_built_by_its_first_batch_and_an_optimizer_of_old(tmp_path: Path, make: str) -> None:
    """What `SwapEMAWeights` needs is asked of nobody else."""
    import tf_keras

    optimizers = tf_keras.optimizers

    def fit(epochs: int) -> int:
        optimizer: Any = optimizers.legacy.Adam() if "legacy" in make else optimizers.Adam(use_ema="averaged" in make)
        if "scaled" in make:
            optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
        model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        with CheckpointManager(tmp_path, {"model": model}) as manager:
            callback = CheckpointCallback(manager, every_epochs=1)
            model.fit(np.ones([4, 2]), np.ones([4, 1]), batch_size=2, epochs=epochs, verbose=0, callbacks=[callback])
        return int(optimizer.iterations)

    assert fit(1) == 2
    assert fit(3) == 6
