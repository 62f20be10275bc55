"""Foreign files that lie, by the thousand: each is read or refused in words, in bounded memory, and nobody dies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptflow.interop.untrusted.budget import TIME_VARIABLE
from tests.chaos.conftest import Note
from tests.interop import lying_others, test_probe, test_probe_keras
from tests.interop.models import KERASES

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(14_400, method="thread")]

BUNDLES, FILES = 4000, 1000  # of files for each Keras and kind
OTHERS = {
    ".tar.gz": 30_000,
    ".safetensors": 30_000,
    ".weights.json": 2000,
    "SavedModel of tf_keras": 500,
    "root that is exported": 500,
}


def numbers(count: int) -> range:
    first = int(os.environ.get("CKPTFLOW_CHAOS_SEED", 1)) * 1_000_000
    return range(first, first + count)


def test_many_bundles(tmp_path: Path, note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIME_VARIABLE, "30")
    refused = test_probe.torment(tmp_path, numbers(BUNDLES))
    note("lying checkpoints of TensorFlow's", BUNDLES, f"{refused:,} refused, 0 crashes")


@pytest.mark.parametrize("kind", test_probe_keras.SUFFIXES)
@pytest.mark.parametrize("framework", KERASES)
def test_many_files_of_keras(
    framework: str, kind: str, tmp_path: Path, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIME_VARIABLE, "30")
    data = test_probe_keras.sound(framework, kind, tmp_path)
    refused = test_probe_keras.torment(tmp_path, kind, data, numbers(FILES))
    note(f"lying {kind} of {framework}", FILES, f"{refused:,} refused, 0 crashes")


@pytest.mark.parametrize("kind", lying_others.LIES)
def test_many_others(kind: str, tmp_path: Path, note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIME_VARIABLE, "30")
    refused = lying_others.torment(kind, tmp_path, numbers(OTHERS[kind]))
    note(f"lying {kind}", OTHERS[kind], f"{refused:,} refused, 0 crashes")
