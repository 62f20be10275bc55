"""The manager that a callback makes for itself where it is given a URL."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from ckptflow.callbacks.checks import check_manager
from ckptflow.commit.retention import Policy
from ckptflow.errors import StateMismatchError, UsageError
from ckptflow.job.arguments import DEFAULT_KEEP, check_policies
from ckptflow.manager import CheckpointManager
from ckptflow.reading import run_url
from ckptflow.storage.opening import open_store
from ckptflow.storage.redaction import redact_url
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow")


_HOW_TO_TAKE_WHAT_FITS = (
    "This CheckpointCallback was given a URL, and restores all or nothing. To take what fits, make a "
    "CheckpointManager, call its restore_latest(partial=True) or (rename=...) before fit, and give the callback that "
    "manager; or give a URL of its own to a model that has changed"
)


@dataclass
class _Fits:
    """The newest fits of this process to one root. It keeps neither the model nor its manager alive."""

    by: weakref.ref[OwnManager]
    model: weakref.ref[Any]
    has_ended: bool = False  # one of them, well
    is_closed: bool = False


_fits: dict[str, _Fits] = {}  # of each root, also where the model is gone: another one must not go on with its weights


def root_of(store: Store) -> str:
    """The root of a store, by one name however its URL was typed: a link to a folder is that folder."""
    return os.path.realpath(store.url) if os.path.isabs(store.url) else store.url


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
        self._fits: _Fits | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return repr(redact_url(self.url))

    @property
    def root(self) -> str:
        """What `root_of` says of its store."""
        with closing(open_store(self.url, self._storage_options)) as store:
            return root_of(store)

    @contextmanager
    def begin(self, model: Any) -> Iterator[None]:
        """The start of a fit of `model`: if the first one cannot begin, nothing is left open."""
        if self._is_closed:
            raise UsageError(f"{self!r}: this CheckpointCallback was closed; make another one")
        if self.manager is not None:
            self._check_goes_on(self.manager, model)
            yield
            return
        with ExitStack() as on_error:
            self.manager = manager = on_error.enter_context(self._make(model))
            on_error.callback(self._forget)
            session = manager.session
            check_manager(session)
            root = root_of(session.store)
            before = _fits.get(root)
            if before is not None:
                self._check_follows(before, model)
            try:
                yield
            except StateMismatchError as error:
                error.add_note(_HOW_TO_TAKE_WHAT_FITS)
                raise
            if before is not None and before.model() is not model and session.start and session.start.restored:
                text = "%r: this process has fitted another model to this root, and this model goes on from its step %d"
                logger.warning(text, self, session.start.restored.folder.step)
            on_error.pop_all()
            self._model = model
            self._fits = _fits[root] = _Fits(weakref.ref(self), weakref.ref(model))

    def end(self) -> None:
        """A fit has ended well, on all workers."""
        if self.manager is not None and self._fits is not None:
            self.manager.session.cluster.part()  # this process may end now, while others read the last message
            self._fits.has_ended = True

    def close(self) -> None:
        self._is_closed = True
        if self._fits is not None:
            self._fits.is_closed = True
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

    def _check_follows(self, before: _Fits, model: Any) -> None:
        """Raises `UsageError` unless this may restore what another callback has saved; waits for its saves."""
        if before.model() is not model and not before.is_closed:
            raise UsageError(
                f"{self!r}: this process has fitted another model to this root, and this one would go on with its "
                "weights: each model needs a root of its own. To continue this run with a model that is built anew, "
                "call close() of the first callback before, or start a new process"
            )
        if before.model() is model and before.has_ended:
            raise UsageError(
                f"{self!r}: this model was fitted with another CheckpointCallback of this URL, and a new one would "
                "restore over what has changed since: make one callback, and give it to each fit"
            )
        owner = before.by()
        if owner is not None and owner.manager is not None:  # its fit ended by an exception, perhaps during a save
            owner.manager.session.settle()

    def _check_goes_on(self, manager: CheckpointManager, model: Any) -> None:
        if manager.session.calls.is_closed:  # by its owner
            raise UsageError(f"{self!r}: this CheckpointCallback was closed; make another one")
        if model is not self._model:
            raise UsageError(
                f"{self!r}: this CheckpointCallback saves the model of its first fit, and this is another model: make "
                "a callback for each model, each with a URL of its own"
            )
