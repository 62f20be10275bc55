"""What a checkpoint holds beside the user's state, of what was attached to it: read, or saved again as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ckptflow.errors import CorruptCheckpointError
from ckptflow.format.dtypes import Array
from ckptflow.job.loading import Loading
from ckptflow.reading import OpenCheckpoint
from ckptflow.state.leaves import as_tensor
from ckptflow.state.private.tensorflow import Trackable
from ckptflow.state.tree import RESERVED_PREFIX

logger = logging.getLogger("ckptflow")


class Carried(Trackable):  # type: ignore[misc]
    """Stands in the place of what was attached when the checkpoint was made: its Python state, its tensors by name."""

    def __init__(self, state: Any, tensors: Mapping[str, Array]) -> None:
        self._state = state
        self._tensors = tensors

    def get_state(self) -> Any:
        return self._state

    def set_state(self, state: Any) -> None:
        """Never called: a restore passes over reserved names."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {name: as_tensor(array) for name, array in self._tensors.items()}

    def _restore_from_tensors(self, restored_tensors: Any) -> None:
        """Never called, as above."""


def read_attached(
    checkpoint: OpenCheckpoint, name: str, loading: Loading | None, *, with_metrics: bool = False
) -> tuple[Any, dict[str, Array]] | None:
    """What a checkpoint holds of what was attached under `name`: its Python state, and its tensors; None for nothing.

    What its `loading` has set aside is given away, not read once more; else metrics can be verified too, as they are
    there. Raises `CorruptCheckpointError`.
    """
    if name not in checkpoint.python_state:
        return None
    names = [each for each in checkpoint if each.startswith(f"{name}/")]
    found = loading.take_aside(name) if loading is not None and loading.manifest == checkpoint.manifest else {}
    if not found:
        metrics = [each for each in checkpoint if with_metrics and checkpoint.spec(each).metric]
        found = checkpoint.read([*names, *metrics])
    return checkpoint.python_state[name], {each.removeprefix(f"{name}/"): found[each] for each in names}


def carried_in(checkpoint: OpenCheckpoint, loading: Loading) -> dict[str, Carried]:
    """All of that, by name, to be attached while it is saved again. What is damaged is left out, and warned of: it must
    not keep what was restored from being saved."""
    found: dict[str, Carried] = {}
    for name in checkpoint.python_state:
        if not name.startswith(RESERVED_PREFIX):
            continue
        try:
            each = read_attached(checkpoint, name, loading)
        except CorruptCheckpointError as error:
            logger.warning(
                "%s is saved again without %s, which is damaged: %s", checkpoint.checkpoint.url, name, str(error)
            )
            continue
        if each is not None:
            found[name] = Carried(*each)
    return found
