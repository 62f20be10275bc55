"""Roots of very many checkpoints: one that a real save made, copied under other steps, each valid by itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ckptflow.format.layout import MANIFEST_NAME, Folder
from ckptflow.format.manifest import Manifest, decode, encode


def multiply_objects(
    objects: dict[str, bytes],
    folder: str,
    steps: Iterable[int],
    *,
    incarnation: int | None = None,
    lineage: Sequence[str] = (),
) -> None:
    """Adds a checkpoint like `folder` for each of `steps`; all share its shards' bytes.

    They are of the same life, or of `incarnation`, which began with `lineage`.
    """
    manifest = decode(objects[f"{folder}/{MANIFEST_NAME}"], Manifest, folder)
    files = {key: data for key, data in objects.items() if key.startswith(f"{folder}/") and "manifest" not in key}
    for step in steps:
        changes = {"incarnation": incarnation, "lineage": tuple(lineage)} if incarnation else {}
        copy, data = _copy(manifest, step, **changes)
        objects.update({key.replace(folder, copy, 1): data for key, data in files.items()})
        objects[f"{copy}/{MANIFEST_NAME}"] = data


def multiply_folders(root: Path, folder: str, steps: Iterable[int]) -> None:
    """The same in a local folder, where all share its shards by hard links."""
    source = root / folder
    manifest = decode((source / MANIFEST_NAME).read_bytes(), Manifest, folder)
    files = [name for name in os.listdir(source) if name != MANIFEST_NAME]
    for step in steps:
        copy, data = _copy(manifest, step)
        target = root / copy
        target.mkdir()
        for name in files:
            os.link(source / name, target / name)
        (target / MANIFEST_NAME).write_bytes(data)


def _copy(manifest: Manifest, step: int, **changes: Any) -> tuple[str, bytes]:
    folder = str(Folder(step, changes.get("incarnation", manifest.incarnation)))
    return folder, encode(msgspec.structs.replace(manifest, folder=folder, step=step, **changes))
