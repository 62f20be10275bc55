"""Named tensors as a run, as an import without a model makes one."""

from __future__ import annotations

import os
from typing import Any

from ckptflow import Checkpoint
from ckptflow.interop.tensors import CapturedTensors, NamedTensors
from ckptflow.job.alone import commit_alone


def commit_tensors(url: str | os.PathLike[str], step: int, tensors: NamedTensors, **how: Any) -> Checkpoint:
    """Commits the tensors as the checkpoint that begins the run at `url`; `how` is for `commit_alone`."""
    return commit_alone(url, step, CapturedTensors(tensors), **how)
