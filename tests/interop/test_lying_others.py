"""Some of the lies of `lying_others`: each is read or refused in words, in bounded memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.interop.lying_others import LIES, torment

COUNTS = {".tar.gz": 150, ".safetensors": 150, ".weights.json": 20}  # the others start processes


@pytest.mark.parametrize("kind", LIES)
def test_some_that_lie(kind: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert torment(kind, tmp_path, range(COUNTS.get(kind, 3)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
