"""`PerWorker`: marks state of which each worker has its own value."""

from __future__ import annotations

from typing import Any


class PerWorker:
    """Marks an entry of `state` as this worker's own, not a replica: above all its position in the input.

    Every worker saves its value and gets it back by its number: no input is repeated or dropped. With another number
    of workers restoring raises an error that names the entry, unless the object has `get_state`, `set_state` and
    `resize(states, world_size, index)`, which gets the states of all former workers, in order, and returns the state
    of worker `index` of the `world_size` workers there are now.

    The object may be anything that `state` accepts: a `tf.data` iterator, an iterator of
    `strategy.distribute_datasets_from_function`, variables, or plain Python state.
    """

    def __init__(self, obj: Any) -> None:
        if isinstance(obj, PerWorker):
            raise ValueError("PerWorker(PerWorker(...)): once is enough")
        self.obj = obj

    def __repr__(self) -> str:
        return f"PerWorker({type(self.obj).__name__})"  # that of the object may be long, or need the other workers

    @property
    def can_resize(self) -> bool:
        """Whether its states can be redistributed to another number of workers."""
        return callable(getattr(self.obj, "resize", None))
