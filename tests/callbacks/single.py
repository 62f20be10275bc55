"""Jobs of one process, each to be killed once: inside an epoch, or between two."""

from __future__ import annotations

from typing import Any

from tests.callbacks.jobs import Job, live


def stoppers(keras: Any) -> list[Any]:
    return [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=1.0, factor=0.3),
        keras.callbacks.EarlyStopping(monitor="loss", patience=2, min_delta=1.5, restore_best_weights=True),
    ]


JOBS = [
    Job("shuffled"),
    Job("executions", compile={"steps_per_execution": lambda _: 4}),
    Job("stopped", callbacks=stoppers, every={"every_epochs": 1}, between_epochs=True, fit={"epochs": 9}),
    Job("mirrored", replicas=2),
    Job("old", old=True),
]


def main() -> None:
    live(JOBS)
