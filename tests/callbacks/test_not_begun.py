"""A fit that could not begin, since a callback of one's own raised: the next one begins where it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
