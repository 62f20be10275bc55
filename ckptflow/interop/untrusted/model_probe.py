"""A model that is to be built from a manifest's config is built by a process of its own first, see `probe`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.keras.config import build_with_optimizer
from ckptflow.interop.untrusted import probe
from ckptflow.interop.untrusted.budget import builder_bytes


def check_builds(
    models: Mapping[str, Any], path: str, optimizer_path: str | None, stored_bytes: int, *, imports: tuple[str, ...]
) -> None:
    """Raises `CorruptCheckpointError` where a process that builds the model, and its optimizer, dies of it, takes more
    memory than goes with what is stored of it, or comes to no end; `UsageError` where its variables would."""
    with tempfile.TemporaryDirectory(prefix="ckptflow-model-") as folder:
        file = os.path.join(folder, "model.json")
        with open(file, "w", encoding="utf-8") as out:
            needed = {
                name: each for name, each in models.items() if name in (path, f"{path}/optimizer", optimizer_path)
            }
            json.dump({"models": needed, "path": path, "optimizer_path": optimizer_path}, out)
        try:
            probe.check(
                "ckptflow.interop.untrusted.model_probe:build",
                file,
                [file],
                size_bytes=stored_bytes,
                memory_bytes=builder_bytes(stored_bytes),
                imports=(*imports, "tensorflow"),  # before there are limits
                arguments={"imports": imports, "stored_bytes": stored_bytes},
            )
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(str(error).replace(file, f"the config of {path}")) from error


def build(file: str, imports: list[str], stored_bytes: int) -> None:
    """Builds the model that the file describes. For a process of its own: it may die of it."""
    with open(file, encoding="utf-8") as source:
        asked = json.load(source)
    build_with_optimizer(**asked, imports=tuple(imports), stored_bytes=stored_bytes)
