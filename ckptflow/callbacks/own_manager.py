"""The manager that a callback makes for itself where it is given a URL."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ckptflow.callbacks.checks import check_manager
from ckptflow.commit.retention import Policy
from ckptflow.errors import UsageError
from ckptflow.job.arguments import DEFAULT_KEEP, check_policies
from ckptflow.manager import CheckpointManager
from ckptflow.reading import run_url
from ckptflow.storage.redaction import redact_url

# Of each model the roots to which its fits were saved, and by which of us. It keeps no model alive.
_fitted: weakref.WeakKeyDictionary[Any, dict[str, object]] = weakref.WeakKeyDictionary()
_newest: weakref.WeakValueDictionary[str, OwnManager] = weakref.WeakValueDictionary()  # of each URL


class OwnManager:
    """One manager for the model of the first fit, from that fit on until `close`.

    It is not closed between fits: a new one would have to restore, over what the script has changed since.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        keep: Sequence[Policy] | Policy | int | None,
        storage_options: dict[str, Any] | None,
    ) -> None:
        self.url = run_url(url)
        self.manager: CheckpointManager | None = None
        self._policies = check_policies(DEFAULT_KEEP if keep is None else keep)
        self._storage_options = storage_options
        self._model: Any = None
        self._mark = object()

    def __repr__(self) -> str:
        return repr(redact_url(self.url))

    @contextmanager
    def begin(self, model: Any) -> Iterator[None]:
        """The start of a fit of `model`: if the first one cannot begin, nothing is left open."""
        if self.manager is not None:
            self._check_goes_on(self.manager, model)
            yield
            return
        before = _newest.get(self.url)
        if before is not None and before.manager is not None:  # its fit ended by an exception, perhaps during a save
            before.manager.session.settle()
        _newest[self.url] = self
        with ExitStack() as on_error:
            self.manager = manager = on_error.enter_context(self._make(model))
            on_error.callback(self._forget)
            check_manager(manager.session)
            if _fitted.get(model, {}).get(manager.session.store.url, self._mark) is not self._mark:
                raise UsageError(
                    f"{redact_url(self.url)}: this model was fitted with another CheckpointCallback of this URL, and a "
                    "new one would restore over what has changed since: make one callback, and give it to each fit"
                )
            yield
            on_error.pop_all()
            self._model = model

    def end(self) -> None:
        """A fit has ended well, on all workers."""
        if self.manager is not None:
            session = self.manager.session
            session.cluster.part()  # this process may end now, and the others may still read the last message
            _fitted.setdefault(self._model, {})[session.store.url] = self._mark

    def close(self) -> None:
        if self.manager is not None:
            self.manager.close()

    def _make(self, model: Any) -> CheckpointManager:
        return CheckpointManager(
            self.url,
            {"model": model},
            strategy=model.distribute_strategy,
            keep=self._policies,
            storage_options=self._storage_options,
        )

    def _forget(self) -> None:
        self.manager = None

    def _check_goes_on(self, manager: CheckpointManager, model: Any) -> None:
        if manager.session.calls.is_closed:
            raise UsageError(f"{self!r}: this CheckpointCallback was closed; make another one")
        if model is not self._model:
            raise UsageError(
                f"{self!r}: this CheckpointCallback saves the model of its first fit, and this is another model: make "
                "a callback for each model, each with a URL of its own"
            )
