"""A root that somebody else wrote over: its seals are right, and what it says of its models is not what was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.format.manifest import Manifest, decode, encode


def forge_models(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what each manifest below `root` says of its models."""
    for path in root.rglob(MANIFEST_NAME):
        manifest = decode(path.read_bytes(), Manifest, str(path))
        models = msgspec.json.decode(msgspec.json.encode(manifest.models))
        change(models)
        path.write_bytes(encode(msgspec.structs.replace(manifest, models=models)))
