"""Where exports go and imports come from: a folder, S3 and GCS, each with a way behind the library's back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import Server
from tests.storage.backends import BUCKET, GcsBackend, LocalBackend, S3Backend


@dataclass(frozen=True)
class Place:
    """One storage. `url` and `options` are what ckptflow is given; `download` and `upload` share no code with it."""

    name: str
    backend: LocalBackend | S3Backend | GcsBackend
    options: dict[str, Any] | None

    def url(self, name: str) -> str:
        if isinstance(self.backend, LocalBackend):
            return os.path.join(self.backend.root, name)
        scheme = "s3" if isinstance(self.backend, S3Backend) else "gs"
        return f"{scheme}://{BUCKET}/{self.backend.prefix}/{name}"

    def download(self, name: str, folder: Path) -> None:
        """Everything below `name` as files of a folder."""
        for key in self.backend.raw_list():
            if key.startswith(name + "/"):
                path = folder / key.removeprefix(name + "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.backend.raw_get(key))

    def upload(self, folder: Path, name: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.backend.raw_put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def all_places(folder: Path, s3: Server, gcs: Server) -> list[Place]:
    return [
        Place("disk", LocalBackend(str(folder)), None),
        Place("s3", S3Backend(s3, "fsspec"), s3.storage_options),
        Place("gcs", GcsBackend(gcs), gcs.storage_options),
    ]
