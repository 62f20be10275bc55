"""`PerWorker`: the mark of state that each worker has for itself."""

from __future__ import annotations

from typing import Any


class PerWorker:
    """Marks an entry of `state` as this worker's own, not a replica: its position in the input, above all.

    Every worker saves what it has and gets it back by its number: nothing is repeated, nothing dropped. With another
    number of workers there is no such answer, and restoring is refused by the entry's name; unless the object has
    `get_state`, `set_state` and `resize(states, world_size, index)`, which gets the states of all workers there were,
    in their order, and returns the state of worker `index` of the `world_size` there are now.

    The object may be anything that `state` takes: a `tf.data` iterator, an iterator of
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
        """Whether its states can be dealt out anew to another number of workers."""
        return callable(getattr(self.obj, "resize", None))
