"""Named tensors as a run, as an import without a model makes one."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ckptflow import Checkpoint
from ckptflow.interop.tensors import CapturedTensors, NamedTensors
from ckptflow.job import alone


def commit_tensors(
    url: str | os.PathLike[str], step: int, tensors: NamedTensors, *, shard_bytes: int | None = None, **how: Any
) -> Checkpoint:
    """Commits the tensors as the checkpoint that begins the run at `url`; `how` is for `commit_alone`."""
    with pytest.MonkeyPatch.context() as patch:
        if shard_bytes is not None:
            patch.setattr(alone, "default_shard_bytes", lambda **_: shard_bytes)
        return alone.commit_alone(url, step, CapturedTensors(tensors), **how)
