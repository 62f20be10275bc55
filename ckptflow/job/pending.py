"""`PendingCheckpoint`: a save on its way, and how it ended."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from ckptflow.commit.catalog import Checkpoint
from ckptflow.errors import CommitTimeoutError, CommitUnknownError
from ckptflow.stops import awake_s
from ckptflow.threads import as_timeout, left_alone

_LOOK_S = 0.5  # what a look may take in addition: a storage that answers at once does, also to who does not wait


class PendingCheckpoint:
    """One save on its way. Nothing here takes the other workers, so any may ask at any time, from any thread.

    On the coordinator a save has ended once it is committed and acknowledged: no newer incarnation held the root after
    the manifest was there. The other workers have ended once their own shards and receipt are durable; there `result()`
    looks for the manifest in storage, and for word of another worker that the save has failed; in a job without
    TensorFlow's coordination service there is no such word before the next `save`, `wait` or close of the manager.
    """

    def __init__(
        self,
        step: int,
        future: Future[Checkpoint | None],
        look: Callable[[float], Checkpoint],
        look_s: float,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._step = step
        self._future = future
        self._look = look  # for so many seconds, or longer where the storage does not answer
        self._look_s = look_s
        self._looking: Future[Checkpoint] | None = None
        self._waiting = waiting  # open while this is waited for, so that other workers wait as well

    @property
    def step(self) -> int:
        """The step that is being saved."""
        return self._step

    def done(self) -> bool:
        """Whether this worker's part of the save has ended, well or not."""
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until this worker's part has ended; False where it has not within `timeout_s`.

        Raises nothing but ValueError for a `timeout_s` that is NaN.
        """
        limit_s = as_timeout(timeout_s)
        with self._waiting():
            return bool(concurrent.futures.wait([self._future], limit_s).done)

    def result(self, timeout_s: float | None = None) -> Checkpoint:
        """The committed checkpoint. Waits for it, and raises why there is none.

        Returns or raises within `timeout_s`, and half a second for a look at the storage, whatever that does: a storage
        that fails or does not answer is not waited for any longer. `timeout_s=0` asks how it stands.

        Raises `SaveFailedError` and its subclasses (`CommitTimeoutError`, and `CommitUnknownError` where the storage
        never said), `FencedError`, `PeerError` if the coordinator has ended or does not answer, `StorageError` if the
        manifest cannot be looked for, or `TimeoutError` if the save has not ended within `timeout_s` seconds
        (default: no limit on the coordinator; the manager's `commit_timeout_s` on the other workers). `math.inf` is no
        limit; ValueError for NaN.
        """
        limit_s = as_timeout(timeout_s)
        deadline = None if timeout_s is None else awake_s() + timeout_s
        with self._waiting():
            found = self._future.result(limit_s)
            if found is not None:
                return found
            return self._find(awake_s() + self._look_s if deadline is None else deadline)

    def _find(self, deadline: float) -> Checkpoint:
        """Looks in another thread, which is left alone where a call to the storage takes longer than there is time."""
        looking = self._looking
        while True:
            if looking is None or (looking.done() and looking.exception() is not None):
                look_s = max(0.0, deadline - awake_s())
                self._looking = looking = left_alone("ckptflow-look", partial(self._look, look_s))
            try:
                return looking.result(as_timeout(max(0.0, deadline - awake_s()) + _LOOK_S))
            except CommitTimeoutError:  # of a look that had begun before, perhaps
                if awake_s() >= deadline:
                    raise
            except TimeoutError:
                if looking.done():
                    raise
                if awake_s() < deadline:  # this process was stopped meanwhile
                    continue
                raise CommitTimeoutError(
                    f"step {self._step}: the storage has not said in time whether the chief has committed it; the save "
                    "may still be under way"
                ) from None

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Why this worker's part failed, or None where it went well. Raises `TimeoutError` like `result`."""
        limit_s = as_timeout(timeout_s)
        with self._waiting():
            return self._future.exception(limit_s)

    def is_unknown(self) -> bool:
        """Whether the storage never said if the save, or this worker's part of it, arrived. False while it goes on."""
        return self.done() and isinstance(self._future.exception(), CommitUnknownError)

    def __repr__(self) -> str:
        state = "under way" if not self.done() else "failed" if self._future.exception() else "saved"
        return f"<PendingCheckpoint of step {self._step}: {state}>"
