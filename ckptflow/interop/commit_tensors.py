"""Named tensors, wherever they come from, as the first checkpoint of a run: committed as any other one is."""

from __future__ import annotations

import os
from typing import Any

from ckptflow.commit.catalog import Checkpoint
from ckptflow.interop.tensors import CapturedTensors, NamedTensors
from ckptflow.job.alone import commit_alone


def commit_tensors(url: str | os.PathLike[str], step: int, tensors: NamedTensors, **how: Any) -> Checkpoint:
    """Commits the tensors, and what belongs to them, as `commit_alone` does, which takes `how`.

    Memory holds the staging buffers and a few tensors, never all. Nothing is committed unless all of them could be
    read. Raises `CorruptCheckpointError`, too, where a tensor is not what its `TensorInfo` says.
    """
    return commit_alone(url, step, CapturedTensors(tensors), **how)
